#!/bin/bash
# OpenSSL judges what lib/x509 and lib/crypto make: certificates under its strict rules, CSRs, keys.
source "$(dirname "$0")/lib.sh"

# Each test gets an empty $W, so that the certificates lie beside it.
C=$(mktemp -d "${TMPDIR:-/tmp}/assay-certs-XXXXXX")
trap 'rm -rf "$C"; cleanup' EXIT
"$TOOLS/certs" "$C" || exit 1

chain() { # NAME
	openssl verify -x509_strict -CAfile "$C/$1.root.pem" "$C/$1.root.pem" &&
		openssl verify -x509_strict -CAfile "$C/$1.root.pem" "$C/$1.middle.pem" &&
		openssl verify -x509_strict -purpose sslserver -CAfile "$C/$1.root.pem" -untrusted "$C/$1.middle.pem" "$C/$1.leaf.pem" &&
		openssl verify -x509_strict -purpose sslclient -CAfile "$C/$1.root.pem" -untrusted "$C/$1.middle.pem" "$C/$1.leaf.pem"
}

csr_and_key() { # NAME
	openssl req -inform DER -in "$C/$1.csr" -verify -noout || return 1
	openssl req -inform DER -in "$C/$1.csr" -noout -text | grep -q 'URI:spiffe://example.org/ns/a/sa/b' || return 1
	openssl pkey -in "$C/$1.key.pem" -check -noout || return 1
	openssl pkey -in "$C/$1.key.pem" -pubout >"$W/1"
	openssl x509 -in "$C/$1.leaf.pem" -noout -pubkey >"$W/2"
	openssl req -inform DER -in "$C/$1.csr" -noout -pubkey >"$W/3"
	cmp "$W/1" "$W/2" && cmp "$W/1" "$W/3"
}

profile() {
	local text
	text=$(openssl x509 -in "$C/ec-p256.leaf.pem" -noout -text -nameopt RFC2253)
	for want in 'Subject: CN=a.example.org,O=SPIRE,C=US' 'Basic Constraints: critical' 'CA:FALSE' 'Key Usage: critical' \
		'Digital Signature, Key Encipherment, Key Agreement' 'TLS Web Server Authentication, TLS Web Client Authentication' \
		'DNS:a.example.org, DNS:b.example.org, URI:spiffe://example.org/ns/a/sa/b'; do
		grep -qF "$want" <<<"$text" || {
			echo "without: $want"
			return 1
		}
	done
	! grep -q 'Subject Alternative Name: critical' <<<"$text" || return 1
	openssl x509 -in "$C/no-subject.leaf.pem" -noout -text | grep -q 'Subject Alternative Name: critical'
}

for name in ec-p256 ec-p384 ec-p521 rsa-2048 rsa-4096 no-subject past-2050; do
	t "$name: chain" chain "$name"
	t "$name: CSR and key" csr_and_key "$name"
done
t 'profile of an SVID' profile
finish
