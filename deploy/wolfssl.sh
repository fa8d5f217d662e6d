#!/bin/sh
# Builds the one wolfSSL that Assay is linked with, outside the work tree, and prints where it is.
#   deploy/wolfssl.sh             builds if need be, prints the prefix
#   deploy/wolfssl.sh --where     prints the prefix
#   deploy/wolfssl.sh --is-built  exit status only
# The version is pinned by content: a hash over the sorted hashes of the files in src/, wolfcrypt/src/ and wolfssl/, so that any archive form
# will do. Places that may provide it, in this order: $WOLFSSL_SRC (a folder or a tar archive), the crate wolfssl-sys (it carries
# the whole tree) from the crates registry's file server, the same by the machine's own cargo set-up (which may know a mirror),
# upstream's release archive.
set -eu

version=5.9.4
crate_version=5.3.0
content=f8dc37e04b4656ef387b1101d9c9657fc63c1c70e33d936a0d1e4865ad988909
flags="--enable-static --disable-shared --enable-all-asm --enable-keygen --enable-certgen --enable-certreq --enable-certext
 --enable-ed25519 --enable-curve25519 --enable-mldsa --enable-pkcs11 --enable-alpn --enable-session-ticket --enable-enckeys
 --disable-examples --disable-crypttests"
defines="-DWOLFSSL_ALT_NAMES -DWOLFSSL_ALT_NAMES_NO_REV -DWOLFSSL_ALWAYS_VERIFY_CB -DWOLFSSL_ALT_CERT_CHAINS -DWOLFSSL_PUBLIC_MP
 -DWOLFSSL_CUSTOM_OID -DHAVE_OID_ENCODING -DWOLFSSL_CERT_SETUP_CB -DHAVE_EX_DATA"
cflags="-O2 -g1 -fPIC -ffunction-sections -fdata-sections -fstack-protector-strong -fstack-clash-protection -D_FORTIFY_SOURCE=2"

# Functions of the assembler files that return with the upper halves of the vector registers in use: SHA-256, whose SHA-NI form mixes
# AVX and SSE instructions, is 40 times slower after them (measured: 5 us a block on a virtual Xeon) until something clears those.
# shellcheck disable=SC2016
clear_upper='/@function/ { y = 0 } /%[yz]mm/ { y = 1 } /repz[ \t]+retq/ && y && last !~ /vzeroupper/ { print "\tvzeroupper" }
 { print } NF { last = $0 }'

cache=${ASSAY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/assay}
recipe=$(printf '%s' "$content$flags$defines$cflags$clear_upper" | sha256sum | cut -c1-12)
prefix=$cache/wolfssl-$version-$recipe

case ${1:-} in
--where) echo "$prefix"; exit 0 ;;
--is-built) [ -f "$prefix/lib/libwolfssl.a" ]; exit ;;
esac
if [ -f "$prefix/lib/libwolfssl.a" ]; then
	echo "$prefix"
	exit 0
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/build-XXXXXX")
trap 'rm -rf "$work"' EXIT

content_of() {
	(cd "$1" && find src wolfcrypt/src wolfssl -type f ! -name options.h -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum |
		cut -d' ' -f1)
}

# take DIR NAME: uses the tree in DIR if its content is the pinned one
take() {
	[ -d "$1/wolfcrypt/src" ] || return 1
	got=$(content_of "$1")
	if [ "$got" != "$content" ]; then
		echo "wolfssl.sh: $2 is not the pinned wolfSSL $version (content $got, wanted $content)" >&2
		return 1
	fi
	cp -r "$1" "$work/src"
	chmod -R u+w "$work/src"
	echo "wolfssl.sh: wolfSSL $version from $2" >&2
}

from_env() {
	[ -n "${WOLFSSL_SRC:-}" ] || return 1
	if [ -d "$WOLFSSL_SRC" ]; then
		take "$WOLFSSL_SRC" "$WOLFSSL_SRC"
	else
		mkdir "$work/env" && tar -xf "$WOLFSSL_SRC" -C "$work/env" --strip-components=1 && take "$work/env" "$WOLFSSL_SRC"
	fi
}

from_registry() {
	command -v curl >/dev/null || return 1
	curl -fsSL --retry 3 --max-time 300 -o "$work/crate.tar.gz" \
		"https://static.crates.io/crates/wolfssl-sys/wolfssl-sys-$crate_version.crate" || return 1
	mkdir "$work/registry" && tar -xzf "$work/crate.tar.gz" -C "$work/registry" --strip-components=1 &&
		take "$work/registry/wolfssl-src" "the crate wolfssl-sys $crate_version"
}

from_cargo() {
	command -v cargo >/dev/null || return 1
	mkdir -p "$work/crate/src"
	printf '[package]\nname = "carrier"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\nwolfssl-sys = "=%s"\n' \
		"$crate_version" >"$work/crate/Cargo.toml"
	: >"$work/crate/src/lib.rs"
	(cd "$work/crate" && cargo fetch >&2) || return 1
	for d in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/wolfssl-sys-"$crate_version"/wolfssl-src; do
		take "$d" "the crate wolfssl-sys $crate_version" && return 0
	done
	return 1
}

from_upstream() {
	command -v curl >/dev/null || return 1
	curl -fsSL --max-time 300 -o "$work/up.tar.gz" \
		"https://github.com/wolfSSL/wolfssl/archive/refs/tags/v$version-stable.tar.gz" || return 1
	mkdir "$work/up" && tar -xzf "$work/up.tar.gz" -C "$work/up" --strip-components=1 && take "$work/up" "upstream's archive"
}

if ! { from_env || from_registry || from_cargo || from_upstream; }; then
	echo "wolfssl.sh: the source of wolfSSL $version could not be had: neither from the crates registry nor from upstream." >&2
	echo "wolfssl.sh: get it by other means and set WOLFSSL_SRC to its folder or tar archive." >&2
	exit 1
fi

for f in "$work"/src/wolfcrypt/src/*.S; do
	awk "$clear_upper" "$f" >"$work/patched" && cat "$work/patched" >"$f"
done

echo "wolfssl.sh: building wolfSSL $version (about a minute, once)" >&2
log=$work/log
build() {
	cd "$work/src" && ./autogen.sh || return 1
	# The flags are lists of words.
	# shellcheck disable=SC2086,SC2116
	./configure $flags --prefix="$prefix" CFLAGS="$cflags" CPPFLAGS="$(echo $defines)" || return 1
	make -j"$(nproc)" && make install DESTDIR="$work/dest"
}
if ! (build) >"$log" 2>&1; then
	tail -n 30 "$log" >&2
	echo "wolfssl.sh: the build failed" >&2
	exit 1
fi
rm -rf "$work/dest$prefix/share" "$work/dest$prefix/bin"
mv -T "$work/dest$prefix" "$prefix" 2>/dev/null || [ -f "$prefix/lib/libwolfssl.a" ]
echo "$prefix"
