/* From the file and the flags to options; checks across keys, in spiffe-helper's words. */
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "agent/files_argv.h"
#include "agent/files_options_internal.h"
#include "lib/spiffeid.h"
#include "lib/text.h"

enum { MODE_MAX = 0777 };

int files_signal(const char *name)
{
	static const int signals[] = { SIGABRT, SIGALRM, SIGBUS, SIGCHLD, SIGCONT, SIGFPE, SIGHUP,
		SIGILL, SIGINT, SIGIO, SIGKILL, SIGPIPE, SIGPROF, SIGPWR, SIGQUIT, SIGSEGV,
		SIGSTKFLT, SIGSTOP, SIGSYS, SIGTERM, SIGTRAP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG,
		SIGUSR1, SIGUSR2, SIGVTALRM, SIGWINCH, SIGXCPU, SIGXFSZ };

	if (strncmp(name, "SIG", 3) == 0)
		name += 3;
	for (size_t i = 0; i < ARRAY_LEN(signals); i++)
		if (strcmp(sigabbrev_np(signals[i]), name) == 0)
			return signals[i];
	return strcmp(name, "POLL") == 0 ? SIGIO : 0;
}

bool files_wants_x509(const struct files_set_options *o)
{
	return o->svid_file || o->key_file || o->bundle_file || o->combined_file;
}

static bool wants_any(const struct files_set_options *o)
{
	return files_wants_x509(o) || o->jwt_bundle_file || o->n_jwts;
}

/* ---- one set ---- */

/* Go's FileMode takes the number as it is, and so do we: 644 without the zero is 01204. */
static void check_mode(struct config *c, const char *key, int *mode, int otherwise)
{
	int was = *mode;

	if (was < 0) {
		AUTO(free) char *words = xstrdup(key);

		for (char *p = words; *p; p++)
			*p = *p == '_' ? ' ' : *p;
		config_problem(c, key, "%s must be positive", words);
		return;
	}
	if (was == 0)
		*mode = otherwise;
	if (was > MODE_MAX)
		*mode = was & MODE_MAX;
	if (was > MODE_MAX || was == 444 || was == 400 || was == 440)
		config_warning(c, key,
			"%s = %d is not octal, so the mode is %04o, as with spiffe-helper; write "
			"0%d",
			key, was, (unsigned)*mode, was);
}

/* A name inside of cert_dir. "a/b" is fine, if the folder a is there. */
static bool good_file_name(const char *name)
{
	size_t n = strlen(name);

	if (!n || n > 200 || name[0] == '/' || name[n - 1] == '/' || strncmp(name, "..", 2) == 0)
		return false;
	return strcmp(name, ".") != 0 && !strstr(name, "//") && !strstr(name, "/../") &&
	       !strstr(name, "/..") && !strstr(name, "/./");
}

/* As path.Join(): a slash or "./" before it means nothing. */
static void check_file_name(struct config *c, const char *key, char **name)
{
	const char *p = *name;

	if (!p)
		return;
	while (*p == '/' || strncmp(p, "./", 2) == 0)
		p += *p == '/' ? 1 : 2;
	memmove(*name, p, strlen(p) + 1);
	if (!good_file_name(*name))
		config_problem(c, key, "%s: \"%s\" is no name of a file in cert_dir", key, *name);
}

static void read_jwt(struct config *c, struct files_set_file *f, const struct config_node *n)
{
	struct files_jwt_file j = { NULL, NULL, { NULL, 0 } };
	struct files_set_options *o = &f->o;
	struct config sub;

	config_init(&sub, files_jwt_table, &j);
	config_load_object(&sub, n);
	if (!j.file)
		config_problem(
			&sub, "jwt_svid_file_name", "'jwt_file_name' is required in 'jwt_svids'");
	else if (!j.audience)
		config_problem(&sub, "jwt_audience", "'jwt_audience' is required in 'jwt_svids'");
	check_file_name(&sub, "jwt_svid_file_name", &j.file);
	if (!sub.n_problems) {
		struct files_jwt *to;

		o->jwts = xreallocarray(o->jwts, o->n_jwts + 1, sizeof(*o->jwts));
		to = &o->jwts[o->n_jwts++];
		*to = (struct files_jwt){ .file = xstrdup(j.file) };
		strings_add(&to->audience, j.audience);
		for (size_t i = 0; i < j.extra.n; i++)
			strings_add(&to->audience, j.extra.v[i]);
	}
	buf_bytes(&c->problems, buf_view(&sub.problems));
	buf_bytes(&c->warnings, buf_view(&sub.warnings));
	c->n_problems += sub.n_problems;
	config_deinit(&sub);
	config_free_values(files_jwt_table, &j);
}

static void read_owner(struct config *c, struct files_set_file *f)
{
	char *end;

	f->o.uid = (uid_t)-1;
	f->o.gid = (gid_t)-1;
	if (f->owner) {
		const struct passwd *p = getpwnam(f->owner);
		unsigned long v = strtoul(f->owner, &end, 10);

		if (p)
			f->o.uid = p->pw_uid;
		else if (!*end && f->owner[0] != '-' && v < UINT32_MAX)
			f->o.uid = (uid_t)v;
		else
			config_problem(c, "owner", "owner: there is no user \"%s\"", f->owner);
	}
	if (f->group) {
		const struct group *g = getgrnam(f->group);
		unsigned long v = strtoul(f->group, &end, 10);

		if (g)
			f->o.gid = g->gr_gid;
		else if (!*end && f->group[0] != '-' && v < UINT32_MAX)
			f->o.gid = (gid_t)v;
		else
			config_problem(c, "group", "group: there is no group \"%s\"", f->group);
	}
}

static void read_renewal(struct config *c, struct files_set_file *f, bool daemon)
{
	struct files_set_options *o = &f->o;
	struct err e;

	if (f->renew_signal) {
		o->signo = files_signal(f->renew_signal);
		if (!o->signo)
			config_problem(c, "renew_signal", "renew_signal: there is no signal \"%s\"",
				f->renew_signal);
	}
	if (!daemon && o->cmd)
		config_warning(
			c, "cmd", "cmd is set but daemon_mode is false. cmd will be ignored.");
	if (!daemon && f->renew_signal)
		config_warning(c, "renew_signal",
			"renew_signal is set but daemon_mode is false. renew_signal will be "
			"ignored.");
	if (!daemon && o->pid_file)
		config_problem(c, "pid_file_name",
			"pid_file_name is set but daemon_mode is false. pid_file_name is only "
			"supported in daemon_mode");
	else if (o->pid_file && !f->renew_signal)
		config_problem(
			c, "pid_file_name", "must specify renew_signal when using pid_file_name");
	if ((o->cmd || o->pid_file) && !files_wants_x509(o) && !o->jwt_renews)
		config_warning(c, o->cmd ? "cmd" : "pid_file_name",
			"only X.509 files start the command and send the signal, and there are "
			"none; set jwt_renews to do so for JWT files");
	if (!o->cmd)
		return;
	strings_add(&o->argv, o->cmd);
	if (f->cmd_args) {
		struct strings args = { NULL, 0 };

		if (files_argv_parse(f->cmd_args, &args, &e))
			config_problem(c, "cmd_args", "error parsing cmd arguments: %s", e.msg);
		for (size_t i = 0; i < args.n; i++)
			strings_add(&o->argv, args.v[i]);
		strings_deinit(&args);
	}
}

static void check_x509(struct config *c, const struct files_set_options *o)
{
	int n = (o->svid_file != NULL) + (o->key_file != NULL) + (o->bundle_file != NULL);

	if (n && n < 3 && !o->combined_file)
		config_problem(c,
			o->svid_file  ? "svid_file_name"
			: o->key_file ? "svid_key_file_name"
				      : "svid_bundle_file_name",
			"all or none of 'svid_file_name', 'svid_key_file_name', "
			"'svid_bundle_file_name' must be specified");
}

static void check_twice(struct config *c, const struct files_set_options *o)
{
	const char *names[5 + FILES_JWT_MAX] = { o->svid_file, o->key_file, o->bundle_file,
		o->combined_file, o->jwt_bundle_file };
	size_t n = 5;

	if (o->n_jwts > FILES_JWT_MAX) {
		config_problem(c, "jwt_svids", "jwt_svids: more than %d of them", FILES_JWT_MAX);
		return;
	}
	for (size_t i = 0; i < o->n_jwts; i++)
		names[n++] = o->jwts[i].file;
	for (size_t i = 0; i < n; i++)
		for (size_t k = 0; k < i; k++)
			if (names[i] && names[k] && strcmp(names[i], names[k]) == 0)
				config_problem(c, "cert_dir",
					"two of the files have the same name \"%s\"", names[i]);
}

static void check_set(struct config *c, struct files_set_file *f, bool daemon)
{
	struct files_set_options *o = &f->o;
	struct spiffeid id = SPIFFEID_INIT;
	struct err e;

	check_file_name(c, "svid_file_name", &o->svid_file);
	check_file_name(c, "svid_key_file_name", &o->key_file);
	check_file_name(c, "svid_bundle_file_name", &o->bundle_file);
	check_file_name(c, "svid_combined_file_name", &o->combined_file);
	check_file_name(c, "jwt_bundle_file_name", &o->jwt_bundle_file);
	for (size_t i = 0; i < f->jwts.n; i++)
		read_jwt(c, f, f->jwts.v[i]);
	check_mode(c, "cert_file_mode", &o->cert_mode, 0644);
	check_mode(c, "key_file_mode", &o->key_mode, 0600);
	check_mode(c, "jwt_bundle_file_mode", &o->jwt_bundle_mode, 0600);
	check_mode(c, "jwt_svid_file_mode", &o->jwt_svid_mode, 0600);
	read_owner(c, f);
	read_renewal(c, f, daemon);
	check_x509(c, o);
	check_twice(c, o);
	if (o->spiffe_id && spiffeid_parse_str(&id, o->spiffe_id, &e))
		config_problem(c, "spiffe_id", "spiffe_id: %s", e.msg);
	spiffeid_deinit(&id);
}

/* ---- all of them ---- */

static void set_deinit(struct files_set_options *o)
{
	char **all[] = { &o->name, &o->cert_dir, &o->svid_file, &o->key_file, &o->bundle_file,
		&o->combined_file, &o->jwt_bundle_file, &o->hint, &o->spiffe_id, &o->cmd,
		&o->pid_file };

	for (size_t i = 0; i < ARRAY_LEN(all); i++)
		free(*all[i]);
	for (size_t i = 0; i < o->n_jwts; i++) {
		free(o->jwts[i].file);
		strings_deinit(&o->jwts[i].audience);
	}
	free(o->jwts);
	strings_deinit(&o->argv);
}

static void file_deinit(struct files_set_file *f)
{
	free(f->jwts.v);
	free(f->cmd_args);
	free(f->renew_signal);
	free(f->owner);
	free(f->group);
}

/* Takes what is in f. */
static void add_set(struct files_options *o, struct files_set_file *f, const char *name)
{
	o->sets = xreallocarray(o->sets, o->n_sets + 1, sizeof(*o->sets));
	f->o.name = xstrdup(name);
	if (!f->o.cert_dir)
		f->o.cert_dir = xstrdup(".");
	o->sets[o->n_sets++] = f->o;
	f->o = (struct files_set_options){ NULL };
}

static bool good_set_name(const char *s)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "0123456789_-";

	return *s && strlen(s) <= FILES_NAME_MAX && strspn(s, letters) == strlen(s);
}

static void check_name(struct config *c, const struct files_options *o, const struct config_node *n)
{
	if (!good_set_name(n->key))
		config_problem_at(c, n,
			"identity \"%s\": the name may have letters, digits, \"-\" and \"_\", at "
			"most %d",
			n->key, FILES_NAME_MAX);
	for (size_t i = 0; i < o->n_sets; i++)
		if (strcmp(o->sets[i].name, n->key) == 0)
			config_problem_at(c, n, "identity \"%s\" is given twice", n->key);
	if (o->n_sets >= FILES_SETS_MAX)
		config_problem_at(c, n, "more than %d sets of files", FILES_SETS_MAX);
}

static void read_identity(
	struct config *c, struct files_file *f, const struct config_node *n, const char *cert_dir)
{
	struct files_set_file set = { .cmd_args = NULL };
	struct config sub;

	if (n->kind != CONFIG_OBJECT) {
		config_problem_at(
			c, n, "identity must be a block with a name: identity \"name\" { … }");
		return;
	}
	check_name(c, &f->o, n);
	config_init(&sub, files_set_table, &set);
	config_load_object(&sub, n);
	if (!set.o.cert_dir && cert_dir)
		set.o.cert_dir = xstrdup(cert_dir);
	check_set(&sub, &set, f->o.daemon);
	if (!wants_any(&set.o) && !sub.n_problems)
		config_problem_at(&sub, n,
			"identity \"%s\" names no files: svid_file_name and those beside it, "
			"jwt_svids or jwt_bundle_file_name",
			n->key);
	buf_bytes(&c->problems, buf_view(&sub.problems));
	buf_bytes(&c->warnings, buf_view(&sub.warnings));
	c->n_problems += sub.n_problems;
	config_deinit(&sub);
	add_set(&f->o, &set, n->key);
	file_deinit(&set);
}

static void check_address(struct config *c, struct files_options *o)
{
	const char *old = getenv("SPIRE_AGENT_ADDRESS"), *env = getenv("SPIFFE_ENDPOINT_SOCKET");
	const char *path = o->agent_path;
	char *plain;

	old = old && *old ? old : NULL;
	env = env && *env ? env : NULL;
	if (!path && old && env)
		config_problem(c, "agent_address",
			"both SPIRE_AGENT_ADDRESS and SPIFFE_ENDPOINT_SOCKET set. Use "
			"SPIFFE_ENDPOINT_SOCKET only.");
	if (!path && old && !env)
		config_warning(c, "agent_address",
			"SPIRE_AGENT_ADDRESS is deprecated. Use SPIFFE_ENDPOINT_SOCKET instead.");
	if (!path)
		path = env ? env : old ? old : FILES_AGENT_DEFAULT;
	if (strncmp(path, "unix:", 5) == 0)
		path += strncmp(path + 5, "//", 2) == 0 ? 7 : 5;
	if (strncmp(path, "tcp:", 4) == 0 || !*path)
		config_problem(c, "agent_address",
			"agent_address: must be the path of a socket, or unix:///path");
	plain = xstrdup(path);
	free(o->agent_path);
	o->agent_path = plain;
}

/* Two sets must not write the same file. */
static void check_across(struct config *c, const struct files_options *o)
{
	for (size_t i = 0; i < o->n_sets; i++)
		for (size_t k = 0; k < i; k++) {
			const struct files_set_options *a = &o->sets[i], *b = &o->sets[k];
			const char *x[] = { a->svid_file, a->key_file, a->bundle_file,
				a->combined_file, a->jwt_bundle_file };
			const char *y[] = { b->svid_file, b->key_file, b->bundle_file,
				b->combined_file, b->jwt_bundle_file };

			if (strcmp(a->cert_dir, b->cert_dir) != 0)
				continue;
			for (size_t m = 0; m < ARRAY_LEN(x) * ARRAY_LEN(y); m++) {
				const char *p = x[m / ARRAY_LEN(y)], *q = y[m % ARRAY_LEN(y)];

				if (p && q && strcmp(p, q) == 0)
					config_problem(c, "identity",
						"identities \"%s\" and \"%s\" both write \"%s\" in "
						"%s",
						*b->name ? b->name : "(top level)", a->name, p,
						a->cert_dir);
			}
		}
}

static void check(struct config *c, struct files_file *f)
{
	AUTO(free) char *dir = f->set.o.cert_dir ? xstrdup(f->set.o.cert_dir) : NULL;

	check_address(c, &f->o);
	check_set(c, &f->set, f->o.daemon);
	if (wants_any(&f->set.o))
		add_set(&f->o, &f->set, "");
	else if (!f->identities.n && !f->set.jwts.n)
		config_problem(c, "cert_dir",
			"at least one of the sets ('svid_file_name', 'svid_key_file_name', "
			"'svid_bundle_file_name'), 'jwt_svids', or 'jwt_bundle_file_name' must be "
			"fully specified");
	for (size_t i = 0; i < f->identities.n; i++)
		read_identity(c, f, f->identities.v[i], dir);
	check_across(c, &f->o);
	if (f->o.health && (f->o.health_port < 0 || f->o.health_port > 65535))
		config_problem(c, "health_checks.bind_port",
			f->o.health_port < 0 ? "bind port must be positive"
					     : "bind_port must be at most 65535");
	if (!f->o.health_port)
		f->o.health_port = 8081;
}

int files_options_load(
	struct files_options *ret, const struct files_flags *f, struct buf *problems, struct err *e)
{
	struct files_file file = { .identities = { NULL, 0 } };
	struct config c;
	int r;

	config_init(&c, files_whole_table(), &file);
	r = config_load(&c, f->config, false, e);
	if (!r) {
		if (f->daemon >= 0)
			config_override(
				&c, "daemon_mode", f->daemon ? "true" : "false", "-daemon-mode");
		if (!c.broken)
			check(&c, &file);
		r = config_finish(&c, problems, e);
	}
	config_take_warnings(&c, &file.o.warnings);
	config_deinit(&c);
	set_deinit(&file.set.o);
	file_deinit(&file.set);
	free(file.identities.v);
	if (r)
		files_options_deinit(&file.o);
	else
		*ret = file.o;
	return r;
}

void files_options_deinit(struct files_options *o)
{
	for (size_t i = 0; i < o->n_sets; i++)
		set_deinit(&o->sets[i]);
	free(o->sets);
	free(o->agent_path);
	free(o->health_address);
	free(o->live_path);
	free(o->ready_path);
	strings_deinit(&o->warnings);
	*o = (struct files_options){ NULL };
}

/* ---- printed back ---- */

static void print_set(const struct files_set_options *o, struct buf *ret)
{
	struct files_set_file f = { .o = *o };
	AUTO_BUF struct buf text = BUF_INIT;
	AUTO(free) char *prefix = *o->name ? xasprintf("identity.\"%s\".", o->name) : xstrdup("");
	AUTO(free) char *signal = NULL;
	const char *line, *end;

	if (o->signo)
		signal = xasprintf("SIG%s", sigabbrev_np(o->signo));
	f.renew_signal = signal;
	config_print(files_set_table, &f, &text);
	for (line = buf_cstr(&text); (end = strchr(line, '\n')) != NULL; line = end + 1) {
		AUTO(free) char *key = xstrndup(line, strcspn(line, " "));

		/* modes are read in octal, so they are shown so */
		if (strstr(key, "_file_mode"))
			buf_printf(ret, "%s%s = %04o\n", prefix, key,
				(unsigned)strtoul(line + strlen(key) + 3, NULL, 10));
		else
			buf_printf(ret, "%s%.*s\n", prefix, (int)(end - line), line);
	}
	for (size_t i = 1; i < o->argv.n; i++) {
		AUTO(free) char *q = text_quote(o->argv.v[i]);

		buf_printf(ret, "%scmd_args[%zu] = %s\n", prefix, i - 1, q);
	}
	for (size_t i = 0; i < o->n_jwts; i++)
		for (size_t k = 0; k < o->jwts[i].audience.n; k++)
			buf_printf(ret, "%sjwt_svids.\"%s\".audience[%zu] = \"%s\"\n", prefix,
				o->jwts[i].file, k, o->jwts[i].audience.v[k]);
	if (o->uid != (uid_t)-1)
		buf_printf(ret, "%sowner = %u\n", prefix, (unsigned)o->uid);
	if (o->gid != (gid_t)-1)
		buf_printf(ret, "%sgroup = %u\n", prefix, (unsigned)o->gid);
}

void files_options_print(const struct files_options *o, struct buf *ret)
{
	struct files_file f = { .o = *o };

	config_print(files_top_table, &f, ret);
	for (size_t i = 0; i < o->n_sets; i++)
		print_set(&o->sets[i], ret);
}
