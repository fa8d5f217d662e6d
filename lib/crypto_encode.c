/* Base64, hexadecimal and PEM. No wolfSSL here: its codec accepts what RFC 4648 does not. */
#include <stdlib.h>
#include <string.h>

#include "lib/crypto.h"

enum { PEM_LINE = 64, PEM_LABEL_MAX = 64, BAD = 0xff };

static const char alphabet_std[] =
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static const char alphabet_url[] =
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static void encode(struct buf *ret, struct bytes v, const char *alphabet, bool pad)
{
	size_t out = (v.n + 2) / 3 * 4;
	uint8_t *p;

	if (!buf_reserve(ret, out))
		return;
	p = ret->p + ret->len;
	for (size_t i = 0; i < v.n; i += 3) {
		size_t left = v.n - i;
		uint32_t bits = (uint32_t)v.p[i] << 16 |
				(left > 1 ? (uint32_t)v.p[i + 1] << 8 : 0) |
				(left > 2 ? v.p[i + 2] : 0);

		*p++ = (uint8_t)alphabet[bits >> 18];
		*p++ = (uint8_t)alphabet[bits >> 12 & 63];
		if (left > 1 || pad)
			*p++ = left > 1 ? (uint8_t)alphabet[bits >> 6 & 63] : '=';
		if (left > 2 || pad)
			*p++ = left > 2 ? (uint8_t)alphabet[bits & 63] : '=';
	}
	*p = 0;
	ret->len = (size_t)(p - ret->p);
}

void base64_encode(struct buf *ret, struct bytes v)
{
	encode(ret, v, alphabet_std, true);
}

void base64url_encode(struct buf *ret, struct bytes v)
{
	encode(ret, v, alphabet_url, false);
}

static uint8_t digit(uint8_t c, bool url)
{
	if (c >= 'A' && c <= 'Z')
		return (uint8_t)(c - 'A');
	if (c >= 'a' && c <= 'z')
		return (uint8_t)(c - 'a' + 26);
	if (c >= '0' && c <= '9')
		return (uint8_t)(c - '0' + 52);
	if (c == (url ? '-' : '+'))
		return 62;
	if (c == (url ? '_' : '/'))
		return 63;
	return BAD;
}

/* text without padding; out has room for n / 4 * 3 + 2 bytes. false: a strange character, a single
 * left over one, or trailing bits that are not zero (RFC 4648 3.5). */
static bool decode(struct bytes text, bool url, uint8_t *out)
{
	uint32_t bits = 0;
	size_t i;

	if (text.n % 4 == 1)
		return false;
	for (i = 0; i < text.n; i++) {
		uint8_t d = digit(text.p[i], url);

		if (d == BAD)
			return false;
		bits = bits << 6 | d;
		if (i % 4 == 3) {
			*out++ = (uint8_t)(bits >> 16);
			*out++ = (uint8_t)(bits >> 8);
			*out++ = (uint8_t)bits;
			bits = 0;
		}
	}
	if (i % 4 == 2) {
		*out = (uint8_t)(bits >> 4);
		return !(bits & 15);
	}
	if (i % 4 == 3) {
		*out++ = (uint8_t)(bits >> 10);
		*out = (uint8_t)(bits >> 2);
		return !(bits & 3);
	}
	return true;
}

static int decode_to(struct buf *ret, struct bytes text, bool url, struct err *e)
{
	size_t n = text.n / 4 * 3 + (text.n % 4 == 3 ? 2 : text.n % 4 == 2 ? 1 : 0);

	if (!buf_reserve(ret, n + 3))
		return err_set(e, ERR_EXHAUSTED, "base64 of %zu characters is too long", text.n);
	if (!decode(text, url, ret->p + ret->len)) {
		ret->p[ret->len] = 0;
		return err_set(e, ERR_INVALID, "illegal base64 data");
	}
	ret->len += n;
	ret->p[ret->len] = 0;
	return 0;
}

int base64_decode(struct buf *ret, struct bytes text, struct err *e)
{
	if (text.n % 4)
		return err_set(e, ERR_INVALID, "illegal base64 data: the padding is missing");
	if (text.n && text.p[text.n - 1] == '=')
		text.n -= text.p[text.n - 2] == '=' ? 2 : 1;
	return decode_to(ret, text, false, e);
}

int base64url_decode(struct buf *ret, struct bytes text, struct err *e)
{
	return decode_to(ret, text, true, e);
}

void hex_encode(struct buf *ret, struct bytes v)
{
	static const char digits[] = "0123456789abcdef";

	if (!buf_reserve(ret, v.n * 2))
		return;
	for (size_t i = 0; i < v.n; i++) {
		ret->p[ret->len++] = (uint8_t)digits[v.p[i] >> 4];
		ret->p[ret->len++] = (uint8_t)digits[v.p[i] & 15];
	}
	ret->p[ret->len] = 0;
}

void pem_write(struct buf *ret, const char *label, struct bytes der)
{
	struct buf text = BUF_INIT_SECRET;

	base64_encode(&text, der);
	buf_str(ret, "-----BEGIN ");
	buf_str(ret, label);
	buf_str(ret, "-----\n");
	for (size_t i = 0; i < text.len; i += PEM_LINE) {
		size_t n = text.len - i;

		buf_append(ret, text.p + i, n < PEM_LINE ? n : PEM_LINE);
		buf_byte(ret, '\n');
	}
	buf_str(ret, "-----END ");
	buf_str(ret, label);
	buf_str(ret, "-----\n");
	buf_deinit(&text);
}

/* Takes one line, without its end (LF or CR LF) and without blanks at its end. */
static struct bytes take_line(struct bytes *text)
{
	const uint8_t *end = text->n ? memchr(text->p, '\n', text->n) : NULL;
	struct bytes line = bytes_of(text->p, end ? (size_t)(end - text->p) : text->n);
	size_t used = end ? line.n + 1 : line.n;

	*text = bytes_of(text->p + used, text->n - used);
	while (line.n && (line.p[line.n - 1] == '\r' || line.p[line.n - 1] == ' ' ||
				 line.p[line.n - 1] == '\t'))
		line.n--;
	return line;
}

/* The line is "-----<what> LABEL-----". */
static bool boundary(struct bytes line, const char *what, char ret[static PEM_LABEL_MAX + 1])
{
	size_t head = strlen(what);
	size_t n;

	if (line.n < head + 5 || memcmp(line.p, what, head) != 0 ||
		memcmp(line.p + line.n - 5, "-----", 5) != 0)
		return false;
	n = line.n - head - 5;
	if (n > PEM_LABEL_MAX || memchr(line.p + head, 0, n))
		return false;
	memcpy(ret, line.p + head, n);
	ret[n] = 0;
	return true;
}

/* Reads up to the END line; ret gets the bytes. */
static int read_block(struct bytes *text, const char *label, struct buf *ret, struct err *e)
{
	AUTO_BUF struct buf body = BUF_INIT_SECRET;
	char end[PEM_LABEL_MAX + 1];

	for (;;) {
		struct bytes line;

		if (text->n == 0)
			return err_set(e, ERR_INVALID, "PEM block \"%s\" has no end", label);
		line = take_line(text);
		if (boundary(line, "-----END ", end))
			break;
		if (memchr(line.p, ':', line.n))
			return err_set(e, ERR_INVALID,
				"PEM block \"%s\" has headers: encrypted PEM is not supported",
				label);
		while (line.n && (line.p[0] == ' ' || line.p[0] == '\t')) {
			line.p++;
			line.n--;
		}
		buf_bytes(&body, line);
	}
	if (strcmp(end, label) != 0)
		return err_set(e, ERR_INVALID, "PEM block \"%s\" ends as \"%s\"", label, end);
	if (base64_decode(ret, buf_view(&body), e))
		return err_wrap(e, "PEM block \"%s\"", label);
	return 0;
}

int pem_each(struct bytes text,
	int (*fn)(void *arg, const char *label, struct bytes der, struct err *e), void *arg,
	struct err *e)
{
	AUTO_BUF struct buf der = BUF_INIT_SECRET;
	char label[PEM_LABEL_MAX + 1];
	int r;

	while (text.n) {
		if (!boundary(take_line(&text), "-----BEGIN ", label))
			continue;
		buf_reset(&der);
		r = read_block(&text, label, &der, e);
		if (r)
			return r;
		r = fn(arg, label, buf_view(&der), e);
		if (r)
			return r;
	}
	return 0;
}
