/*
 * use_new_container_locator = false: SPIRE's matchers of before, over /proc/PID/cgroup alone. A
 * path counts if it ends in a container's id, and names a pod before that, or cri-o right before.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "agent/workload_k8s_internal.h"

enum { CGROUP_FILE_MAX = 1 << 20 };

static bool is_hex(const char *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!isxdigit((unsigned char)p[i]))
			return false;
	return true;
}

static bool is_punct(char c)
{
	return ispunct((unsigned char)c);
}

/* Hexadecimal digits in groups of 8, 4, 4, 4 and 12, with or without a character between, and one
 * behind: how long that is; 0: it is not there. */
static size_t pod_uid_at(const char *p, const char *end, char ret[static CONTAINER_POD_UID_LEN + 1])
{
	static const size_t groups[] = { 8, 4, 4, 4, 12 };
	const char *from = p;
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_LEN(groups); i++) {
		if (i && p < end && is_punct(*p)) {
			ret[n++] = '-';
			p++;
		}
		if ((size_t)(end - p) < groups[i] || !is_hex(p, groups[i]))
			return 0;
		memcpy(ret + n, p, groups[i]);
		n += groups[i];
		p += groups[i];
	}
	ret[n] = '\0';
	return p < end && is_punct(*p) ? (size_t)(p - from) + 1 : 0;
}

/* Words, each with one such character behind it. */
static bool is_words(const char *p, const char *end)
{
	for (; p < end; p++)
		if (is_punct(*p) && (is_punct(p[-1]) || p[-1] == '\0'))
			return false;
	return p == end && is_punct(end[-1]);
}

/* id: where the container's begins. */
static bool find_pod(const char *path, const char *id, char ret[static CONTAINER_POD_UID_LEN + 1])
{
	for (const char *p = path; (p = strstr(p, "pod")) && p < id; p++) {
		size_t n;

		if (p == path || !is_punct(p[-1]))
			continue;
		n = pod_uid_at(p + 3, id, ret);
		if (n && is_words(p + 3 + n, id))
			return true;
	}
	ret[0] = '\0';
	return false;
}

static bool match(const char *path, size_t n, struct container *ret)
{
	static const char scope[] = ".scope", crio[] = "crio";
	AUTO(free) char *copy = NULL;
	const char *id;

	if (n >= strlen(scope) && memcmp(path + n - strlen(scope), scope, strlen(scope)) == 0)
		n -= strlen(scope);
	if (n <= CONTAINER_ID_LEN || !is_hex(path + n - CONTAINER_ID_LEN, CONTAINER_ID_LEN))
		return false;
	copy = xstrndup(path, n);
	id = copy + n - CONTAINER_ID_LEN;
	if (!find_pod(copy, id, ret->pod_uid) &&
		((size_t)(id - copy) < sizeof(crio) || !is_punct(id[-1]) ||
			memcmp(id - sizeof(crio), crio, strlen(crio)) != 0))
		return false;
	memcpy(ret->id, id, CONTAINER_ID_LEN + 1);
	return true;
}

struct joining {
	struct container all;
	struct err *e;
	int r;
};

static bool join(void *arg, struct bytes path)
{
	struct joining *j = arg;
	struct container one = { .id = "" };

	if (!match((const char *)path.p, path.n, &one))
		return true;
	if (!j->all.id[0])
		j->all = one;
	else if (strcmp(j->all.id, one.id) != 0)
		j->r = err_set(j->e, ERR_PRECONDITION,
			"multiple container IDs found in cgroups (%s, %s)", j->all.id, one.id);
	else if (strcmp(j->all.pod_uid, one.pod_uid) != 0)
		j->r = err_set(j->e, ERR_PRECONDITION,
			"multiple pod UIDs found in cgroups (%s, %s)", j->all.pod_uid, one.pod_uid);
	return !j->r;
}

int k8s_legacy_from_cgroup(struct bytes text, struct container *ret, struct err *e)
{
	struct joining j = { .e = e };
	int r = container_each_path(text, join, &j, e);

	r = r ? r : j.r;
	if (!r)
		*ret = j.all;
	return r;
}

int k8s_legacy_container(const struct caller *c, struct container *ret, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT_MAX(CGROUP_FILE_MAX);
	int r = caller_read(c, "cgroup", &text, e);

	return r ? r : k8s_legacy_from_cgroup(buf_view(&text), ret, e);
}
