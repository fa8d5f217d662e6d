/* The kubelet's list of pods, in pieces, and a pod alone. */
#include <string.h>

#include "agent/podlist.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

struct rig {
	struct selectors all;
	size_t n, enough;
};

static bool take(void *arg, struct pod *p)
{
	struct rig *r = arg;
	const struct pod_item *c;

	INVARIANT(*pod_text(p, p->uid));
	if (!p->broken) {
		pod_selectors(p, &r->all);
		c = pod_container(p, "a");
		if (c)
			pod_container_selectors(p, c, &r->all);
	}
	pod_free(p);
	return ++r->n != r->enough;
}

static int run(struct rig *r, struct bytes doc, size_t piece)
{
	AUTO(podlist_free) struct podlist *l = podlist_new(take, r);
	struct err e = ERR_INIT;
	int c = 0;

	for (size_t i = 0; i < doc.n && !c; i += piece)
		c = podlist_feed(l, bytes_of(doc.p + i, doc.n - i < piece ? doc.n - i : piece), &e);
	return c ? c : podlist_end(l, &e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct rig a = { .enough = 0 }, b = { .enough = 0 }, c = { .enough = 1 };
	struct pod *p = NULL;
	struct err e = ERR_INIT;
	int r;

	if (n > 1 << 16)
		return 0;
	r = run(&a, bytes_of(data, n), n + 1);
	INVARIANT(r == run(&b, bytes_of(data, n), 1 + n % 5));
	INVARIANT(a.n == b.n && selectors_equal(&a.all, &b.all));
	(void)run(&c, bytes_of(data, n), 7);
	INVARIANT(c.n <= 1);
	if (pod_parse(bytes_of(data, n), &p, &e) == 0)
		pod_free(p);
	selectors_deinit(&a.all);
	selectors_deinit(&b.all);
	selectors_deinit(&c.all);
	return 0;
}
