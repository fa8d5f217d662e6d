#include "agent/docker.h"

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/container.h"

/* ---- addresses ---- */

int docker_address(const char *text, char **ret_url, char **ret_unix, struct err *e)
{
	const char *rest = strstr(text, "://");
	size_t scheme = rest ? (size_t)(rest - text) : 0;

	if (!rest || !rest[3])
		return err_set(e, ERR_INVALID, "unable to parse docker host \"%s\"", text);
	rest += 3;
	if (scheme == 4 && strncmp(text, "unix", 4) == 0) {
		if (rest[0] != '/')
			return err_set(e, ERR_INVALID,
				"docker host \"%s\" is no absolute path: unix:///path", text);
		*ret_url = xstrdup("http://localhost");
		*ret_unix = xstrdup(rest);
		return 0;
	}
	if ((scheme == 3 && strncmp(text, "tcp", 3) == 0) ||
		(scheme == 4 && strncmp(text, "http", 4) == 0)) {
		size_t n = strcspn(rest, "/?#");

		*ret_url = xasprintf("http://%.*s", (int)n, rest);
		*ret_unix = NULL;
		return 0;
	}
	return err_set(e, ERR_INVALID,
		"docker host \"%s\" is neither unix:///path nor tcp://host:port", text);
}

int docker_version_check(const char *text, struct err *e)
{
	const char *p = text + (text[0] == 'v');
	size_t major = strspn(p, "0123456789");
	size_t minor = p[major] == '.' ? strspn(p + major + 1, "0123456789") : 0;

	if (!major || !minor || p[major + 1 + minor] || major > 4 || minor > 4)
		return err_set(e, ERR_INVALID,
			"invalid API version (%s): must be formatted <major>.<minor>", text);
	return 0;
}

int docker_template_check(const char *text, struct err *e)
{
	AUTO(free) char *url = NULL;
	AUTO(free) char *path = NULL;
	int places = 0;

	for (const char *p = strchr(text, '%'); p; p = strchr(p + 2, '%')) {
		if (!p[1])
			return err_set(e, ERR_INVALID,
				"invalid podman_socket_path_template: trailing %% at end of "
				"template");
		if (p[1] != 'd' && p[1] != '%')
			return err_set(e, ERR_INVALID,
				"invalid podman_socket_path_template: template only supports "
				"escaped %%%% or the %%d UID placeholder");
		places += p[1] == 'd';
	}
	if (places != 1)
		return err_set(e, ERR_INVALID,
			"invalid podman_socket_path_template: template must contain exactly one "
			"%%d UID placeholder");
	if (docker_address(text, &url, &path, e))
		return err_wrap(e, "invalid podman_socket_path_template");
	return 0;
}

char *docker_template_path(const char *text, uint32_t uid)
{
	struct buf out = BUF_INIT;

	for (const char *p = text; *p; p++) {
		if (*p != '%')
			buf_byte(&out, (uint8_t)*p);
		else if (*++p == 'd')
			buf_printf(&out, "%u", (unsigned)uid);
		else
			buf_byte(&out, '%');
	}
	return buf_take_str(&out);
}

/* ---- control groups ---- */

struct engine_search {
	enum docker_engine engine;
	uint32_t uid;
};

/* "/user-1000.slice/" in the path; a number that is no uid counts as none. */
static bool user_of(struct bytes path, uint32_t *ret)
{
	static const char before[] = "/user-", after[] = ".slice/";
	const uint8_t *p = path.p, *end = path.p + path.n;

	while ((p = memmem(p, (size_t)(end - p), before, sizeof(before) - 1))) {
		uint64_t n = 0;
		size_t digits = 0;

		p += sizeof(before) - 1;
		for (; p < end && isdigit(*p); p++, digits++)
			n = n > UINT32_MAX ? n : n * 10 + (uint64_t)(*p - '0');
		if (!digits || (size_t)(end - p) < sizeof(after) - 1 ||
			memcmp(p, after, sizeof(after) - 1) != 0)
			continue;
		*ret = (uint32_t)n;
		return n <= UINT32_MAX;
	}
	return false;
}

static bool look_for_podman(void *arg, struct bytes path)
{
	struct engine_search *s = arg;

	if (!path.n ||
		(!memmem(path.p, path.n, "libpod-", 7) && !memmem(path.p, path.n, "/libpod/", 8)))
		return true;
	s->engine = user_of(path, &s->uid) ? ENGINE_PODMAN_ROOTLESS : ENGINE_PODMAN;
	return false;
}

int docker_engine_of(struct bytes cgroup, enum docker_engine *ret, uint32_t *ret_uid, struct err *e)
{
	struct engine_search s = { .engine = ENGINE_DOCKER };
	int r = container_each_path(cgroup, look_for_podman, &s, e);

	if (r)
		return r;
	*ret = s.engine;
	*ret_uid = s.uid;
	return 0;
}

struct place_search {
	const char *id;
	char *place;
};

/* Its last place in the path, as that is where ids are looked for. */
static bool look_for_id(void *arg, struct bytes path)
{
	struct place_search *s = arg;
	size_t n = strlen(s->id);
	const uint8_t *end = path.p + path.n, *last = NULL;

	for (const uint8_t *p = path.p; path.n && (p = memmem(p, (size_t)(end - p), s->id, n)); p++)
		last = p;
	if (last)
		s->place = xstrndup((const char *)path.p, (size_t)(last - path.p) + n);
	return !last;
}

char *docker_place_of(struct bytes cgroup, const char *id)
{
	struct place_search s = { .id = id };
	struct err ignored;

	if (*id)
		(void)!container_each_path(cgroup, look_for_id, &s, &ignored);
	return s.place;
}

/* ---- the operator's patterns ---- */

#define TOKEN_ANY "*"
#define TOKEN_ID "<id>"

static struct bytes segment(struct bytes *path, bool *ret_more)
{
	const uint8_t *slash = path->n ? memchr(path->p, '/', path->n) : NULL;
	struct bytes ret = bytes_of(path->p, slash ? (size_t)(slash - path->p) : path->n);

	*ret_more = slash != NULL;
	path->p += slash ? ret.n + 1 : ret.n;
	path->n -= slash ? ret.n + 1 : ret.n;
	return ret;
}

static bool is_token(struct bytes s, const char *token)
{
	return bytes_equal(s, bytes_str(token));
}

static bool wild(struct bytes s)
{
	return is_token(s, TOKEN_ANY) || is_token(s, TOKEN_ID);
}

/* Could some path fit both? Segments match one to one, so every pair of them must be able to. */
static bool may_meet(const char *a, const char *b)
{
	struct bytes x = bytes_str(a), y = bytes_str(b);
	bool more_x = true, more_y = true;

	while (more_x && more_y) {
		struct bytes s = segment(&x, &more_x), t = segment(&y, &more_y);

		if (!wild(s) && !wild(t) && !bytes_equal(s, t))
			return false;
	}
	return more_x == more_y;
}

static int count_ids(const char *pattern)
{
	struct bytes rest = bytes_str(pattern);
	bool more = true;
	int n = 0;

	while (more)
		n += is_token(segment(&rest, &more), TOKEN_ID);
	return n;
}

static bool is_ambiguous(const struct strings *patterns, size_t i)
{
	for (size_t k = 0; k < patterns->n; k++)
		if (k != i && may_meet(patterns->v[i], patterns->v[k]))
			return true;
	return false;
}

int docker_matchers_check(const struct strings *patterns, struct err *e)
{
	AUTO_BUF struct buf bad = BUF_INIT_MAX(512);

	if (patterns->n > DOCKER_MATCHERS_MAX)
		return err_set(e, ERR_INVALID, "more than %d patterns", DOCKER_MATCHERS_MAX);
	for (size_t i = 0; i < patterns->n; i++)
		if (is_ambiguous(patterns, i))
			buf_printf(&bad, "%s\"%s\"", bad.len ? " " : "", patterns->v[i]);
	if (bad.len || bad.failed)
		return err_set(e, ERR_INVALID, "dockerfinder: patterns must not be ambiguous: [%s]",
			buf_cstr(&bad));
	for (size_t i = 0; i < patterns->n; i++)
		if (count_ids(patterns->v[i]) != 1)
			return err_set(e, ERR_INVALID,
				"pattern \"%s\" must contain the container id token \"" TOKEN_ID
				"\" exactly once",
				patterns->v[i]);
	return 0;
}

/* True when the path fits; the id may be empty. */
static bool fits(const char *pattern, struct bytes path, struct bytes *ret_id)
{
	struct bytes p = bytes_str(pattern), id = { 0 };
	bool more_p = true, more_path = true;

	while (more_p && more_path) {
		struct bytes want = segment(&p, &more_p), s = segment(&path, &more_path);

		if (is_token(want, TOKEN_ID))
			id = s;
		else if (!is_token(want, TOKEN_ANY) && !bytes_equal(want, s))
			return false;
	}
	if (more_p != more_path)
		return false;
	*ret_id = id;
	return true;
}

struct match_search {
	const struct strings *patterns;
	char *id;
	bool matched;
	int r;
	struct err *e;
};

static bool match_path(void *arg, struct bytes path)
{
	struct match_search *m = arg;
	struct bytes id;
	size_t i = 0;

	while (i < m->patterns->n && !fits(m->patterns->v[i], path, &id))
		i++;
	if (i == m->patterns->n)
		return true;
	m->matched = true;
	if (id.n > DOCKER_ID_MAX)
		m->r = err_set(m->e, ERR_INTERNAL,
			"workloadattestor/docker: a container id of more than %d characters",
			DOCKER_ID_MAX);
	else if (!m->id && id.n)
		m->id = xstrndup((const char *)id.p, id.n);
	else if (m->id && !bytes_equal(bytes_str(m->id), id))
		m->r = err_set(m->e, ERR_INTERNAL,
			"workloadattestor/docker: multiple container IDs found in cgroups (%s, "
			"%.*s)",
			m->id, (int)id.n, (const char *)id.p);
	return m->r == 0;
}

int docker_matchers_find(
	const struct strings *patterns, struct bytes cgroup, char **ret, struct err *e)
{
	struct match_search m = { .patterns = patterns, .e = e };
	int r = container_each_path(cgroup, match_path, &m, e);

	if (!r)
		r = m.r;
	if (!r && m.matched && !m.id)
		r = err_set(e, ERR_INTERNAL,
			"workloadattestor/docker: a pattern matched, but no container id was "
			"found");
	if (r)
		free(m.id);
	else
		*ret = m.id;
	return r;
}

/* ---- answers ---- */

static int parse(struct bytes json, json_t **ret, struct err *e)
{
	json_error_t je;
	json_t *j = json.n ? json_loadb((const char *)json.p, json.n, 0, &je) : NULL;

	if (!json_is_object(j)) {
		json_decref(j);
		return err_set(e, ERR_INTERNAL, "the answer is not understood: %s",
			j || !json.n ? "not a JSON object" : je.text);
	}
	*ret = j;
	return 0;
}

static int bad_field(const char *name, struct err *e)
{
	return err_set(e, ERR_INTERNAL, "the answer is not understood: %s", name);
}

static int take_labels(json_t *labels, struct selectors *ret, struct err *e)
{
	const char *key;
	json_t *v;

	if (labels && !json_is_null(labels) && !json_is_object(labels))
		return bad_field("Config.Labels", e);
	json_object_foreach(labels, key, v)
	{
		AUTO(free) char *text = NULL;

		if (!json_is_string(v))
			return bad_field("Config.Labels", e);
		text = xasprintf("label:%s:%s", key, json_string_value(v));
		selectors_add(ret, "docker", text);
	}
	return 0;
}

static int take_env(json_t *env, struct selectors *ret, struct err *e)
{
	json_t *v;
	size_t i;

	if (env && !json_is_null(env) && !json_is_array(env))
		return bad_field("Config.Env", e);
	json_array_foreach(env, i, v)
	{
		AUTO(free) char *text = NULL;

		if (!json_is_string(v))
			return bad_field("Config.Env", e);
		text = xasprintf("env:%s", json_string_value(v));
		selectors_add(ret, "docker", text);
	}
	return 0;
}

static int take_image(json_t *image, struct docker_facts *ret, struct err *e)
{
	const char *name = json_string_value(image);

	if (image && !json_is_null(image) && !name)
		return bad_field("Config.Image", e);
	ret->image = xstrdup(name ? name : "");
	if (ret->image[0]) {
		AUTO(free) char *text = xasprintf("image_id:%s", name);

		selectors_add(&ret->selectors, "docker", text);
	}
	return 0;
}

/* "sha256:" and 64 digits: podman 4 has the image's name here. */
static bool is_digest(const char *s)
{
	return s && strncmp(s, "sha256:", 7) == 0 && strlen(s) == 71 &&
	       strspn(s + 7, "0123456789abcdef") == 64;
}

static void take_state(json_t *j, struct docker_facts *ret)
{
	json_t *state = json_object_get(j, "State");
	json_int_t pid = json_integer_value(json_object_get(state, "Pid"));
	const char *image = json_string_value(json_object_get(j, "Image"));

	ret->stopped = json_is_false(json_object_get(state, "Running"));
	ret->pid = pid > 0 && pid <= INT32_MAX ? (pid_t)pid : 0;
	ret->image_digest = is_digest(image) ? xstrdup(image) : NULL;
}

int docker_facts_parse(struct bytes json, struct docker_facts *ret, struct err *e)
{
	struct docker_facts f = { 0 };
	json_t *j = NULL, *config;
	int r = parse(json, &j, e);

	if (r)
		return r;
	config = json_object_get(j, "Config");
	if (!json_is_object(config))
		r = bad_field("it has no Config", e);
	if (!r)
		r = take_labels(json_object_get(config, "Labels"), &f.selectors, e);
	if (!r)
		r = take_env(json_object_get(config, "Env"), &f.selectors, e);
	if (!r)
		r = take_image(json_object_get(config, "Image"), &f, e);
	if (!r)
		take_state(j, &f);
	json_decref(j);
	selectors_normalize(&f.selectors);
	if (r)
		docker_facts_deinit(&f);
	else
		*ret = f;
	return r;
}

void docker_facts_deinit(struct docker_facts *f)
{
	selectors_deinit(&f->selectors);
	free(f->image);
	free(f->image_digest);
	*f = (struct docker_facts){ 0 };
}

int docker_image_parse(struct bytes json, char **ret, struct err *e)
{
	json_t *j = NULL;
	const char *id;
	int r = parse(json, &j, e);

	if (r)
		return r;
	id = json_string_value(json_object_get(j, "Id"));
	*ret = id && *id ? xstrdup(id) : NULL;
	json_decref(j);
	return 0;
}

char *docker_message(struct bytes json)
{
	struct err ignored;
	json_t *j = NULL;
	const char *text = NULL;
	char *ret;

	if (parse(json, &j, &ignored) == 0)
		text = json_string_value(json_object_get(j, "message"));
	ret = xasprintf("%.500s", text ? text : "");
	json_decref(j);
	return ret;
}

static bool read_version(const char *s, unsigned *ret_major, unsigned *ret_minor)
{
	int end = 0;

	return sscanf(s, "%3u.%3u%n", ret_major, ret_minor, &end) == 2 && s[end] == 0;
}

char *docker_version_of(const char *header)
{
	unsigned major, minor, top, top_minor;
	bool known = read_version(DOCKER_VERSION_MAX, &top, &top_minor);

	if (!known || !read_version(header, &major, &minor) || major > top ||
		(major == top && minor > top_minor))
		return xstrdup(DOCKER_VERSION_MAX);
	return xstrdup(header);
}

char *docker_path(const char *version, const char *kind, const char *name)
{
	static const char plain[] = "-._~:@/+,=";
	struct buf out = BUF_INIT;

	if (version && *version)
		buf_printf(&out, "/v%s", version + (version[0] == 'v'));
	buf_printf(&out, "/%s/", kind);
	for (const char *p = name; *p; p++)
		if (isalnum((uint8_t)*p) || strchr(plain, *p))
			buf_byte(&out, (uint8_t)*p);
		else
			buf_printf(&out, "%%%02X", (unsigned)(uint8_t)*p);
	buf_str(&out, "/json");
	return buf_take_str(&out);
}
