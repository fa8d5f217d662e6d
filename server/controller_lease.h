/*
 * Leader election by a Lease (coordination.k8s.io/v1), as Kubernetes' own components do it: the
 * holder renews; another takes over when the Lease did not change for its whole duration by the
 * other's own clock. Whoever cannot renew stops leading at the renew deadline, which is before
 * anybody else may begin. Loop thread.
 */
#ifndef ASSAY_SERVER_CONTROLLER_LEASE_H
#define ASSAY_SERVER_CONTROLLER_LEASE_H

#include "lib/kube.h"

struct lease;
struct lease_options {
	struct loop *loop;
	struct kube *kube;
	const char *namespace, *name;
	const char *identity; /* NULL: host name and something random */
	int64_t duration_ns, renew_deadline_ns, retry_ns;
	void (*changed)(void *arg, bool leading); /* not from inside lease_new() or lease_free() */
	void *arg;
};
struct lease *lease_new(const struct lease_options *o);
bool lease_leading(const struct lease *l);
/* Gives it back, so that another need not wait; done comes once, later, whatever becomes of it. */
void lease_release(struct lease *l, void (*done)(void *arg), void *arg);
void lease_free(struct lease *l); /* NULL is fine */

#endif
