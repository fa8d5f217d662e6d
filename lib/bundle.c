#include "lib/bundle.h"

#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"

struct bundle *bundle_new(const char *trust_domain)
{
	struct bundle *b = xcalloc(1, sizeof(*b));

	b->refs = 1;
	b->trust_domain = xstrdup(trust_domain);
	return b;
}

struct bundle *bundle_ref(struct bundle *b)
{
	__atomic_add_fetch(&b->refs, 1, __ATOMIC_RELAXED);
	return b;
}

void bundle_unref(struct bundle *b)
{
	if (!b || __atomic_sub_fetch(&b->refs, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	for (size_t i = 0; i < b->n_roots; i++)
		x509_unref(b->roots[i].cert);
	for (size_t i = 0; i < b->n_jwt_keys; i++) {
		free(b->jwt_keys[i].key_id);
		pubkey_unref(b->jwt_keys[i].key);
	}
	free(b->roots);
	free(b->jwt_keys);
	free(b->trust_domain);
	free(b);
}

/* The capacity of an array is always the next power of two. */
static void *grow(void *v, size_t n, size_t size)
{
	return n & (n - 1) ? v : xreallocarray(v, n ? n * 2 : 1, size);
}

static bool has_root(const struct bundle *b, struct bytes der)
{
	for (size_t i = 0; i < b->n_roots; i++)
		if (bytes_equal(x509_der(b->roots[i].cert), der))
			return true;
	return false;
}

static void push_root(struct bundle *b, struct x509_cert *c, bool tainted)
{
	b->roots = grow(b->roots, b->n_roots, sizeof(*b->roots));
	b->roots[b->n_roots++] = (struct bundle_root){ .cert = x509_ref(c), .tainted = tainted };
}

bool bundle_add_root(struct bundle *b, struct x509_cert *c, bool tainted)
{
	if (has_root(b, x509_der(c)))
		return false;
	push_root(b, c, tainted);
	return true;
}

static void push_jwt_key(
	struct bundle *b, const char *key_id, struct pubkey *k, int64_t expires_at, bool tainted)
{
	b->jwt_keys = grow(b->jwt_keys, b->n_jwt_keys, sizeof(*b->jwt_keys));
	b->jwt_keys[b->n_jwt_keys++] = (struct bundle_jwt_key){
		.key_id = xstrdup(key_id),
		.key = pubkey_ref(k),
		.expires_at = expires_at,
		.tainted = tainted,
	};
}

bool bundle_add_jwt_key(
	struct bundle *b, const char *key_id, struct pubkey *k, int64_t expires_at, bool tainted)
{
	if (bundle_find_jwt_key(b, key_id))
		return false;
	push_jwt_key(b, key_id, k, expires_at, tainted);
	return true;
}

struct bundle *bundle_dup(const struct bundle *b)
{
	struct bundle *d = bundle_new(b->trust_domain);

	for (size_t i = 0; i < b->n_roots; i++)
		push_root(d, b->roots[i].cert, b->roots[i].tainted);
	for (size_t i = 0; i < b->n_jwt_keys; i++) {
		const struct bundle_jwt_key *k = &b->jwt_keys[i];

		push_jwt_key(d, k->key_id, k->key, k->expires_at, k->tainted);
	}
	d->sequence = b->sequence;
	d->refresh_hint = b->refresh_hint;
	return d;
}

static bool root_equal(const struct bundle_root *a, const struct bundle_root *b)
{
	return a->tainted == b->tainted &&
	       (a->cert == b->cert || bytes_equal(x509_der(a->cert), x509_der(b->cert)));
}

static bool jwt_key_equal(const struct bundle_jwt_key *a, const struct bundle_jwt_key *b)
{
	return a->tainted == b->tainted && a->expires_at == b->expires_at &&
	       strcmp(a->key_id, b->key_id) == 0 &&
	       (a->key == b->key || bytes_equal(pubkey_spki(a->key), pubkey_spki(b->key)));
}

bool bundle_equal_content(const struct bundle *a, const struct bundle *b)
{
	if (a->n_roots != b->n_roots || a->n_jwt_keys != b->n_jwt_keys ||
		a->refresh_hint != b->refresh_hint)
		return false;
	for (size_t i = 0; i < a->n_roots; i++)
		if (!root_equal(&a->roots[i], &b->roots[i]))
			return false;
	for (size_t i = 0; i < a->n_jwt_keys; i++)
		if (!jwt_key_equal(&a->jwt_keys[i], &b->jwt_keys[i]))
			return false;
	return true;
}

struct x509_chain bundle_roots(const struct bundle *b)
{
	struct x509_chain ch = { .n = 0 };

	for (size_t i = 0; i < b->n_roots; i++)
		x509_chain_add(&ch, b->roots[i].cert);
	return ch;
}

const struct bundle_jwt_key *bundle_find_jwt_key(const struct bundle *b, const char *key_id)
{
	for (size_t i = 0; i < b->n_jwt_keys; i++)
		if (strcmp(b->jwt_keys[i].key_id, key_id) == 0)
			return &b->jwt_keys[i];
	return NULL;
}

void bundle_roots_der(const struct bundle *b, struct buf *ret)
{
	for (size_t i = 0; i < b->n_roots; i++)
		buf_bytes(ret, x509_der(b->roots[i].cert));
}

int bundle_from_pem(const char *trust_domain, struct bytes pem, struct bundle **ret, struct err *e)
{
	struct x509_chain ch = { .n = 0 };
	int r = x509_chain_parse_pem(&ch, pem, X509_MAX_ROOTS, e);

	if (r)
		return r;
	*ret = bundle_new(trust_domain);
	for (size_t i = 0; i < ch.n; i++)
		(void)bundle_add_root(*ret, ch.v[i], false);
	x509_chain_deinit(&ch);
	return 0;
}

void bundle_to_pem(const struct bundle *b, struct buf *ret)
{
	for (size_t i = 0; i < b->n_roots; i++)
		pem_write(ret, "CERTIFICATE", x509_der(b->roots[i].cert));
}
