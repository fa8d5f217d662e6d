/* /proc/PID/cgroup: what is found in any text is well-formed, and stands in it. */
#include <string.h>

#include "agent/workload_k8s_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check(struct bytes text, int want)
{
	struct container c = { 0 };
	struct err e;
	int r = container_from_cgroup(text, want, &c, &e);

	INVARIANT(r == 0 || r == ERR_INTERNAL || r == ERR_PRECONDITION);
	INVARIANT(r == 0 || (!c.id[0] && !c.pod_uid[0]));
	INVARIANT(!c.id[0] || (strlen(c.id) == CONTAINER_ID_LEN &&
				      memmem(text.p, text.n, c.id, CONTAINER_ID_LEN)));
	INVARIANT(!c.pod_uid[0] || (c.id[0] && strlen(c.pod_uid) == CONTAINER_POD_UID_LEN &&
					   !strchr(c.pod_uid, '_')));
	INVARIANT((want & CONTAINER_POD) || !c.pod_uid[0]);
}

static void check_legacy(struct bytes text)
{
	struct container c = { 0 };
	struct err e;
	int r = k8s_legacy_from_cgroup(text, &c, &e);

	INVARIANT(r == 0 || r == ERR_INTERNAL || r == ERR_PRECONDITION);
	INVARIANT(r == 0 || !c.id[0]);
	INVARIANT(c.id[0] ? strlen(c.id) == CONTAINER_ID_LEN : !c.pod_uid[0]);
	INVARIANT(strlen(c.pod_uid) <= CONTAINER_POD_UID_LEN);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	check(bytes_of(data, n), 0);
	check(bytes_of(data, n), CONTAINER_POD);
	check_legacy(bytes_of(data, n));
	return 0;
}
