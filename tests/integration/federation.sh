#!/bin/bash
# Trust between domains: two servers with an agent each, both bundle endpoint profiles, rotation on both sides, peers that hang and lie;
# OIDC discovery.
source "$(dirname "$0")/lib.sh"

me=unix:uid:$(id -u)
root=$W

# in NAME COMMAND…: the functions of lib.sh in the domain NAME.test, which has a folder of its own
in_domain() {
	local name=$1
	shift
	W=$root/$name
	TD=$name.test
	SPORT=$(cat "$W/port")
	EPORT=$(cat "$W/endpoint")
	"$@"
}

# domain NAME [EXTRA-SERVER-LINES] [ENDPOINT-PROFILE]: writes the configuration
domain() {
	mkdir -p "$root/$1"
	free_port >"$root/$1/port"
	free_port >"$root/$1/endpoint"
	in_domain "$1" domain_conf "${2:-}" "${3:-profile \"https_spiffe\" {\}}"
}

domain_conf() {
	server_conf "federation {
				bundle_endpoint {
					address = \"127.0.0.1\"
					port = $EPORT
					refresh_hint = \"20s\"
					$2
				}
			}
			$1"
}

up() { in_domain "$1" both && echo "$SPID" >"$root/$1/pid"; }

server_up() { in_domain "$1" server_start && echo "$SPID" >"$root/$1/pid"; }

# federate A B: the bundle of B for A's server, by the server's own SVID
federate() {
	in_domain "$2" s bundle show -format spiffe >"$root/$2.json"
	in_domain "$1" s federation create -trustDomain "$2.test" -bundleEndpointURL "https://127.0.0.1:$(cat "$root/$2/endpoint")" \
		-bundleEndpointProfile https_spiffe -endpointSpiffeID "spiffe://$2.test/spire/server" \
		-trustDomainBundlePath "$root/$2.json" -trustDomainBundleFormat spiffe
}

roots() { in_domain "$1" s bundle list -id "$2.test" | grep -c BEGIN; }
has_roots() { [ "$(roots "$1" "$2")" = "$3" ]; }

# web_cert NAME: a certificate for 127.0.0.1 in the current folder of the test, and its root in $root/web.pem
web_cert() {
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" -addext subjectAltName=IP:127.0.0.1 \
		-keyout "$root/$1.key" -out "$root/$1.pem" 2>/dev/null
}

relationship_lifecycle() {
	domain a
	domain b
	server_up a && server_up b || return 1
	federate a b || return 1
	# polled at once: it now has the endpoint's refresh hint
	until_ok 3 hinted a b || return 1
	in_domain a s federation refresh -id b.test || return 1
	in_domain a s federation list | grep -q 'Found 1 federation relationship' || return 1
	in_domain a s federation show -trustDomain b.test | grep -q 'https_spiffe' || return 1
	# a restart keeps it
	kill "$(cat "$root/a/pid")"
	until_ok 5 gone "$(cat "$root/a/pid")"
	server_up a || return 1
	in_domain a s federation show -trustDomain b.test || return 1
	in_domain a s federation delete -id b.test || return 1
	in_domain a s federation show -trustDomain b.test && die 'still there'
	in_domain a s bundle list -id b.test >/dev/null || die 'its bundle went with it'
}
hinted() { in_domain "$1" s bundle list -id "$2.test" -format spiffe | grep -q '"spiffe_refresh_hint": 20'; }

old_database() {
	# a database made before there were relationships is brought up to date
	domain a
	server_up a || return 1
	kill "$(cat "$root/a/pid")"
	until_ok 5 gone "$(cat "$root/a/pid")"
	python3 - "$root/a/server/datastore.sqlite3" <<-'PY' || return 1
		import sqlite3, sys
		d = sqlite3.connect(sys.argv[1])
		d.execute("DROP TABLE relationship")
		d.execute("DROP INDEX node_num")
		d.execute("ALTER TABLE node DROP COLUMN num")
		d.execute("UPDATE meta SET value = '1' WHERE name = 'schema'")
		d.commit()
	PY
	server_up a || return 1
	in_domain a s federation create -trustDomain b.test -bundleEndpointURL https://127.0.0.1:1 -bundleEndpointProfile https_web
}

cross_domain_mtls() {
	# CA lives so short that both roots change under the workloads
	domain a 'ca_ttl = "1m"
		default_x509_svid_ttl = "8s"'
	domain b 'ca_ttl = "1m"
		default_x509_svid_ttl = "8s"'
	up a && up b || return 1
	federate a b && federate b a || return 1
	in_domain a entry client "$me" -- -federatesWith spiffe://b.test >/dev/null || return 1
	in_domain b entry service "$me" -- -federatesWith spiffe://a.test >/dev/null || return 1
	local port
	port=$(free_port)
	"$TOOLS/workload" -socket "$root/b/public/agent.sock" -name b -listen "$port" -expect spiffe://a.test/client -for 75 >"$root/b.log" 2>&1 &
	pids+=($!)
	until_ok 10 grep -q listening "$root/b.log" || return 1
	"$TOOLS/workload" -socket "$root/a/public/agent.sock" -name a -connect "$port" -expect spiffe://b.test/service -every 50 -for 70 \
		>"$root/a.log" 2>&1 || die "a call failed: $(grep FAILED "$root/a.log" | head -n 3)"
	grep -q FAILED "$root/b.log" && die "$(grep FAILED "$root/b.log" | head -n 3)"
	echo "calls: $(grep -c ' ok peer' "$root/a.log"), identities: $(grep -c identity "$root/a.log")"
	# each side saw the other's roots change
	grep -q 'federated b.test roots 2' "$root/a.log" || die 'b rotated unseen'
	grep -q 'federated a.test roots 2' "$root/b.log" || die 'a rotated unseen'
}

pushed_bundle() {
	domain a
	domain b
	up a && server_up b || return 1
	in_domain b s bundle show -format spiffe | in_domain a s bundle set -id b.test -format spiffe || return 1
	in_domain a entry client "$me" -- -federatesWith spiffe://b.test >/dev/null || return 1
	"$TOOLS/workload" -socket "$root/a/public/agent.sock" -name a -for 20 >"$root/a.log" 2>&1 &
	pids+=($!)
	until_ok 5 grep -q 'federated b.test roots 1' "$root/a.log" || return 1
	# a second root arrives without a new identity
	{
		in_domain b s bundle show
		in_domain a s bundle show
	} | in_domain a s bundle set -id b.test || return 1
	until_ok 2 grep -q 'federated b.test roots 2' "$root/a.log" || return 1
	in_domain a s bundle delete -id b.test && die 'entries federate with it'
	in_domain a s bundle delete -id b.test -mode dissociate || return 1
	in_domain a s entry show -spiffeID spiffe://a.test/client | grep -q FederatesWith && die 'still federates'
	return 0
}

web_endpoint() {
	web_cert one
	web_cert two
	cat "$root/one.pem" "$root/two.pem" >"$root/web.pem"
	cp "$root/one.pem" "$root/serving.pem"
	cp "$root/one.key" "$root/serving.key"
	export SSL_CERT_FILE=$root/web.pem
	domain b '' "profile \"https_web\" { serving_cert_file {
		cert_file_path = \"$root/serving.pem\"
		key_file_path = \"$root/serving.key\"
		file_sync_interval = \"200ms\"
	} }"
	server_up b || return 1
	# static, and over the stored one
	domain a
	sed -i "s|bundle_endpoint {|federates_with \"b.test\" {\n bundle_endpoint_url = \"https://127.0.0.1:$(cat "$root/b/endpoint")\"\n bundle_endpoint_profile \"https_web\" {}\n}\n&|" \
		"$root/a/server.conf"
	server_up a || return 1
	until_ok 5 has_roots a b 1 || return 1
	in_domain a s federation list | grep -q 'Found 0' || die 'a static one is listed'
	# a key that does not fit leaves the old certificate in use; then the new pair is taken
	cp "$root/two.pem" "$root/serving.pem"
	sleep 0.6
	shows one || return 1
	grep -q 'the old one stays in use' "$root/b/server.log" || die 'not logged'
	cp "$root/two.key" "$root/serving.key"
	until_ok 3 shows two || return 1
	in_domain a s federation refresh -id b.test || return 1
	# what is served
	local url
	url=https://127.0.0.1:$(cat "$root/b/endpoint")
	[ "$(curl -s --cacert "$root/web.pem" -o /dev/null -w '%{http_code} %{content_type}' "$url/")" = '200 application/json' ] || return 1
	[ "$(curl -s --cacert "$root/web.pem" -o /dev/null -w '%{http_code}' "$url/x")" = 404 ] || return 1
	[ "$(curl -s --cacert "$root/web.pem" -o /dev/null -w '%{http_code}' -X POST -d x "$url/")" = 405 ] || return 1
	cmp <(curl -s --cacert "$root/web.pem" "$url/") <(curl -s --cacert "$root/web.pem" "$url/") || die 'not stable'
}
shows() {
	openssl s_client -connect "127.0.0.1:$(cat "$root/b/endpoint")" </dev/null 2>/dev/null | openssl x509 -noout -subject | grep -q "CN = $1"
}

wrong_endpoint() {
	domain a
	domain b
	server_up a && server_up b || return 1
	local url
	url=https://127.0.0.1:$(cat "$root/b/endpoint")
	# by the Web PKI it is nobody
	in_domain a s federation create -trustDomain b.test -bundleEndpointURL "$url" -bundleEndpointProfile https_web || return 1
	in_domain a s federation refresh -id b.test >"$root/out" 2>&1 && die 'believed'
	grep -q 'maybe use https_spiffe instead of https_web' "$root/out" || die "$(cat "$root/out")"
	# another id than the one agreed on
	in_domain b s bundle show -format spiffe | in_domain a s bundle set -id b.test -format spiffe
	in_domain a s federation update -trustDomain b.test -bundleEndpointURL "$url" -bundleEndpointProfile https_spiffe \
		-endpointSpiffeID spiffe://b.test/other || return 1
	in_domain a s federation refresh -id b.test >"$root/out" 2>&1 && die 'believed'
	grep -q 'unexpected ID "spiffe://b.test/spire/server"' "$root/out" || die "$(cat "$root/out")"
	# right again
	in_domain a s federation update -trustDomain b.test -bundleEndpointURL "$url" -bundleEndpointProfile https_spiffe \
		-endpointSpiffeID spiffe://b.test/spire/server || return 1
	in_domain a s federation refresh -id b.test || return 1
	# somebody else's roots under its name
	in_domain a s bundle show | in_domain a s bundle set -id b.test
	in_domain a s federation refresh -id b.test && die 'believed'
	return 0
}

hostile_peers() {
	web_cert one
	export SSL_CERT_FILE=$root/one.pem
	local port name kinds='hang drip huge endless garbage deep wrong status none keys'
	port=$(free_port)
	python3 tests/tools/hostile-bundles.py "$port" "$root/one.pem" "$root/one.key" >"$root/hostile.log" 2>&1 &
	pids+=($!)
	domain a
	domain b
	server_up b || return 1
	up a || return 1
	federate a b || return 1
	in_domain a entry web "$me" >/dev/null || return 1
	for name in $kinds; do
		in_domain a s federation create -trustDomain "$name.test" -bundleEndpointURL "https://127.0.0.1:$port/$name" \
			-bundleEndpointProfile https_web || return 1
	done
	for name in huge endless garbage deep wrong status none keys; do
		in_domain a s federation refresh -id "$name.test" >"$root/out" 2>&1 && die "$name was believed"
		cut -c 1-300 "$root/out"
		in_domain a s bundle list -id "$name.test" >/dev/null 2>&1 && die "$name has a bundle"
	done
	# meanwhile the others hang, and everything else goes on
	in_domain a fetch_ok || return 1
	in_domain a s federation refresh -id b.test || return 1
	has_roots a b 1 || return 1
	local rss
	rss=$(awk '/VmHWM/ {print $2}' "/proc/$(cat "$root/a/pid")/status")
	[ "$rss" -lt 100000 ] || die "the server grew to $rss KiB"
	kill "$(cat "$root/a/pid")"
	until_ok 9 gone "$(cat "$root/a/pid")" || die 'does not stop while a peer hangs'
	grep -q 'msg=stopped' "$root/a/server.log"
}

oidc_documents() {
	local port
	port=$(free_port)
	domain a "jwt_issuer = \"https://oidc.a.test\"
		oidc {
			domains = [\"oidc.a.test\", \"127.0.0.1\"]
			insecure_addr = \"127.0.0.1:$port\"
			allow_insecure_scheme = true
			set_key_use = true
		}"
	server_up a || return 1
	local u=http://127.0.0.1:$port d=/.well-known/openid-configuration
	[ "$(curl -s "$u$d" | python3 -c 'import json, sys; d = json.load(sys.stdin); print(d["issuer"], d["jwks_uri"], d["subject_types_supported"])')" = \
		"$u $u/keys ['public']" ] || return 1
	[ "$(curl -s -H 'Host: oidc.a.test' -H 'X-Forwarded-Proto: https' "$u$d" | python3 -c 'import json, sys; print(json.load(sys.stdin)["jwks_uri"])')" = \
		https://oidc.a.test/keys ] || return 1
	[ "$(curl -s -o "$root/out" -w '%{http_code}' -H 'Host: evil' "$u$d")" = 400 ] || return 1
	grep -q 'domain "evil" is not allowed' "$root/out" || return 1
	[ "$(curl -s -o /dev/null -w '%{http_code}' -H 'Host: evil' "$u/keys")" = 200 ] || return 1
	[ "$(curl -s -o /dev/null -w '%{http_code}' "$u/other")" = 404 ] || return 1
	[ "$(curl -s -o /dev/null -w '%{http_code}' -X POST -d x "$u/keys")" = 405 ] || return 1
	curl -s "$u/keys" | grep -q '"use": "sig"'
}

oidc_socket() {
	domain a "disable_jwt_svids = true
		oidc {
			domains = [\"oidc.a.test\"]
			listen_socket_path = \"$root/a/oidc.sock\"
			jwt_issuer = \"https://issuer.test/base\"
			server_path_prefix = \"/in\"
		}"
	server_up a || return 1
	curl -s --unix-socket "$root/a/oidc.sock" http://oidc.a.test/in/.well-known/openid-configuration >"$root/out" || return 1
	grep -q '"issuer": "https://issuer.test/base"' "$root/out" || die "$(cat "$root/out")"
	grep -q '"jwks_uri": "https://issuer.test/base/keys"' "$root/out" || die "$(cat "$root/out")"
	# there are no keys to show
	[ "$(curl -s -o /dev/null -w '%{http_code}' --unix-socket "$root/a/oidc.sock" http://oidc.a.test/in/keys)" = 501 ]
}

t 'a relationship is made, polled, kept and deleted' relationship_lifecycle
t 'a database of version 1 is brought up to date' old_database
t 'a bundle that changes is pushed to workloads' pushed_bundle
t 'https_web: a certificate of files, read again; a static relationship' web_endpoint
t 'an endpoint that is not who it should be is refused' wrong_endpoint
t 'peers that hang, lie and send too much harm nothing else' hostile_peers
t 'OIDC: the two documents' oidc_documents
t 'OIDC: on a Unix socket, behind a gateway' oidc_socket
t 'mutual TLS across domains while both rotate' cross_domain_mtls
finish
