#!/bin/bash
# Upstream authorities: a CA in files (a root, an intermediate, swapped and broken under load), and a server above (nested).
source "$(dirname "$0")/lib.sh"
. tests/integration/authorities.inc

me=unix:uid:$(id -u)

# pki: $W/{root,other}.{pem,key}, and $W/inter.{pem,key} under root
pki() {
	local n
	for n in root other; do
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$W/$n.key" -out "$W/$n.pem" -days 10 -subj "/C=US/O=$n" \
			-addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null || return 1
	done
	openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout "$W/inter.key" -out "$W/inter.csr" -subj /C=US/O=inter 2>/dev/null || return 1
	printf '%s\n' basicConstraints=critical,CA:true keyUsage=critical,keyCertSign,cRLSign subjectKeyIdentifier=hash authorityKeyIdentifier=keyid >"$W/ext"
	openssl x509 -req -in "$W/inter.csr" -CA "$W/root.pem" -CAkey "$W/root.key" -CAcreateserial -days 5 -extfile "$W/ext" -out "$W/inter.pem" 2>/dev/null
}

# disk [BUNDLE]: the plugin's text; its files are $W/up.{pem,key}
disk() { echo "UpstreamAuthority \"disk\" { plugin_data { cert_file_path = \"$W/up.pem\" key_file_path = \"$W/up.key\" ${1:+bundle_file_path = \"$1\"} } }"; }
use() { cp "$W/$1.key" "$W/up.key" && cp "$W/$1.pem" "$W/up.pem"; }
ski() { openssl x509 -in "$1" -noout -ext subjectKeyIdentifier | tail -n 1 | tr -d ' :' | tr A-F a-f; }
upstream_id() { la x509 show -output json | python3 -c "import json, sys; print((json.load(sys.stdin).get('$1') or {}).get('upstream_authority_subject_key_id', ''))"; }
ua() { "$SERVER" upstreamauthority "$1" -socketPath "$W/server.sock" -subjectKeyID "$2"; }
certs() { grep -c BEGIN "$1"; }
# mint: $W/svid.pem and $W/bundle.pem
mint() { s x509 mint -spiffeID "spiffe://$TD/minted" -write "$W" >/dev/null; }

self_signed() {
	pki && use root || return 1
	server_conf '' "$(disk)"
	server_start && mint || return 1
	[ "$(certs "$W/svid.pem")" = 2 ] || die "$(certs "$W/svid.pem") certificates in the chain"
	openssl verify -x509_strict -CAfile "$W/root.pem" -untrusted "$W/svid.pem" "$W/svid.pem" || return 1
	diff <(openssl x509 -in "$W/bundle.pem") <(openssl x509 -in "$W/root.pem") || die "the bundle is not the upstream root"
	[ "$(upstream_id active)" = "$(ski "$W/root.pem")" ] || die "upstream id $(upstream_id active)"
	la x509 taint -authorityID "$(aid x509 active)" >"$W/refused" 2>&1 && die "the local authority was tainted"
	grep -q "can't be tainted if there is an upstream authority" "$W/refused"
}

intermediate() {
	local before
	pki && use inter || return 1
	server_conf '' "$(disk "$W/root.pem")"
	server_start && mint || return 1
	[ "$(certs "$W/svid.pem")" = 3 ] || die "$(certs "$W/svid.pem") certificates in the chain"
	openssl verify -x509_strict -CAfile "$W/root.pem" -untrusted "$W/svid.pem" "$W/svid.pem" || return 1
	[ "$(upstream_id active)" = "$(ski "$W/inter.pem")" ] || die "upstream id $(upstream_id active)"
	# a restart keeps it, chain and all
	before=$(aid x509 active)
	kill "$SPID"
	until_ok 12 gone "$SPID" || return 1
	server_start && mint || return 1
	[ "$(aid x509 active)" = "$before" ] || die "another authority after a restart"
	[ "$(certs "$W/svid.pem")" = 3 ] || die "$(certs "$W/svid.pem") certificates in the chain after a restart"
	agent_start -joinToken "$(token)" && entry web "$me" && fetch_ok || return 1
	fetch -write "$W" >/dev/null
	[ "$(certs "$W/svid.0.pem")" = 3 ]
}

# refused TEXT: the server does not start, and says TEXT
refused() {
	"$SERVER" run -config "$W/server.conf" >"$W/refused" 2>&1 && die "it started"
	grep -q "$1" "$W/refused" || die "$(cat "$W/refused")"
}

broken_at_start() {
	pki && use root || return 1
	server_conf '' "$(disk)"
	cp "$W/other.key" "$W/up.key"
	refused 'certificate and private key do not match' || return 1
	rm "$W/up.key"
	refused 'unable to load upstream CA key' || return 1
	use root
	echo nothing >"$W/up.pem"
	refused 'unable to load upstream CA cert' || return 1
	use inter
	cp "$W/other.pem" "$W/other-bundle.pem"
	server_conf '' "$(disk "$W/other-bundle.pem")"
	refused 'cannot be validated with the provided bundle'
}

swap_under_load() {
	local old before hport
	hport=$(free_port)
	pki && use root || return 1
	server_conf 'default_x509_svid_ttl = "1h"' "$(disk)"
	printf 'health_checks { listener_enabled = true bind_address = "127.0.0.1" bind_port = %s }\n' "$hport" >>"$W/server.conf"
	both && entry web "$me" && fetch_ok || return 1
	pair 20 || return 1
	old=$(ski "$W/root.pem")
	# key and certificate that do not belong together: the last good ones sign, and everybody is told
	cp "$W/other.key" "$W/up.key"
	la x509 prepare || return 1
	[ "$(upstream_id prepared)" = "$old" ] || die "prepared by $(upstream_id prepared)"
	grep -q "files cannot be used.*do not match" "$W/server.log" || die "no word in the log"
	curl -sf "http://127.0.0.1:$hport/ready" | grep -q 'upstream_authority.*do not match' || die "no word in health"
	ua taint "$old" >"$W/refused" 2>&1 && die "the active one's upstream was tainted"
	grep -q 'unable to use upstream authority' "$W/refused" || die "$(cat "$W/refused")"
	# now another upstream
	use other
	la x509 prepare || return 1
	[ "$(upstream_id prepared)" = "$(ski "$W/other.pem")" ] || die "prepared by $(upstream_id prepared)"
	curl -sf "http://127.0.0.1:$hport/ready" | grep -q upstream_authority && die "health still complains"
	bundle_is x509 2 || die "$(in_bundle x509 all) roots"
	la x509 activate -authorityID "$(aid x509 prepared)" || return 1
	before=$(identities "$W/cli")
	ua taint "$old" || return 1
	[ "$(in_bundle x509 tainted)" = 1 ] || die "the bundle shows no taint"
	until_ok "$PATIENCE" more_than "$W/cli" "$before" || die "the client's SVID was not renewed"
	until_ok "$PATIENCE" more_than "$W/srv" "$before" || die "the server's SVID was not renewed"
	ua revoke "$old" || return 1
	bundle_is x509 1 || die "the revoked root is in the bundle"
	fetch -write "$W" >/dev/null
	openssl verify -x509_strict -CAfile "$W/other.pem" -untrusted "$W/svid.0.pem" "$W/svid.0.pem" || return 1
	no_call_failed
}

# ---- nested: $W/… is the server above and its agent, $W/below/… what is below ----

below() { "$@" -socketPath "$W/below/server.sock"; }
roots_below() { [ "$(below "$SERVER" bundle show | grep -c BEGIN)" = "$1" ]; }
keys_below() { [ "$(below "$SERVER" bundle show -format spiffe | grep -c jwt-svid)" = "$1" ]; }
bundle_ids() { "$SERVER" bundle show -format spiffe -socketPath "$1" | python3 -c "import json, sys; print(sorted(k.get('kid') or k['x5c'][0] for k in json.load(sys.stdin)['keys']))"; }
same_bundles() { [ "$(bundle_ids "$W/server.sock")" = "$(bundle_ids "$W/below/server.sock")" ]; }

below_conf() {
	BPORT=$(free_port)
	mkdir -p "$W/below/agent"
	cat >"$W/below/server.conf" <<-EOF
		server {
			bind_address = "127.0.0.1"
			bind_port = $BPORT
			socket_path = "$W/below/server.sock"
			trust_domain = "$TD"
			data_dir = "$W/below/server"
			log_level = "DEBUG"
			default_x509_svid_ttl = "1h"
		}
		plugins {
			KeyManager "disk" { plugin_data { keys_path = "$W/below/server/keys.json" } }
			NodeAttestor "join_token" { plugin_data {} }
			UpstreamAuthority "spire" {
				plugin_data {
					server_address = "127.0.0.1"
					server_port = "$SPORT"
					workload_api_socket = "$W/public/agent.sock"
				}
			}
		}
	EOF
	sed -e "s,$W/,$W/below/,g" -e "s/server_port = .*/server_port = $BPORT/" "$W/agent.conf" >"$W/below/agent.conf"
}

below_start() {
	"$SERVER" run -config "$W/below/server.conf" >>"$W/below.log" 2>&1 &
	BPID=$!
	pids+=("$BPID")
	until_ok 20 below "$SERVER" healthcheck
}

nested_start() {
	server_conf 'default_x509_svid_ttl = "1h"'
	both && entry web "$me" || return 1
	# the nested server is this user too; the entry made first is its default identity, so it gets one of its own
	s entry create -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/below" -selector "$me" -downstream >/dev/null || return 1
	s entry delete -entryID "$(s entry show -spiffeID "spiffe://$TD/web" | sed -n 's/^Entry ID *: //p')" >/dev/null || return 1
	below_conf
	below_start || return 1
	below "$SERVER" bundle show >"$W/below/bundle.pem"
	"$AGENT" run -config "$W/below/agent.conf" -joinToken "$(below "$SERVER" token generate -spiffeID "spiffe://$TD/below-node" | sed -n 's/^Token: //p')" >>"$W/below-agent.log" 2>&1 &
	pids+=($!)
	until_ok 15 "$AGENT" healthcheck -socketPath "$W/below/public/agent.sock" || return 1
	below "$SERVER" entry create -parentID "spiffe://$TD/below-node" -spiffeID "spiffe://$TD/inner" -selector "$me" >/dev/null
	until_ok 10 "$AGENT" api fetch x509 -socketPath "$W/below/public/agent.sock"
}

fetch_below() { "$AGENT" api fetch x509 -socketPath "$W/below/public/agent.sock" -write "$W/below" >/dev/null; }

nested() {
	nested_start && fetch_below || return 1
	[ "$(certs "$W/below/svid.0.pem")" = 2 ] || die "$(certs "$W/below/svid.0.pem") certificates in the chain"
	s bundle show >"$W/roots.pem"
	openssl verify -x509_strict -CAfile "$W/roots.pem" -untrusted "$W/below/svid.0.pem" "$W/below/svid.0.pem" || return 1
	openssl x509 -in <(tail -n +"$(grep -n BEGIN "$W/below/svid.0.pem" | sed -n '2s/:.*//p')" "$W/below/svid.0.pem") -noout -subject | grep -q 'OU = DOWNSTREAM-1' || die "subject"
	until_ok 8 same_bundles || die "the bundles differ"
	keys_below 2 || die "both servers' JWT keys must be in the bundle"
	# a JWT-SVID from below is valid above
	valid "$("$AGENT" api fetch jwt -audience a -socketPath "$W/below/public/agent.sock" | grep -o 'eyJ[A-Za-z0-9_.-]*' | head -n 1)" || die "JWT-SVID"
	# the server above may go away: below goes on, a restart of it too
	kill -9 "$SPID"
	until_ok 5 gone "$SPID" || return 1
	kill "$BPID"
	until_ok 12 gone "$BPID" || return 1
	below_start || die "no start without the server above"
	below "$SERVER" x509 mint -spiffeID "spiffe://$TD/minted" -write "$W/below" >/dev/null || return 1
	server_start && below "$SERVER" localauthority x509 prepare && until_ok 8 same_bundles
}

# Workloads below and above call each other while the root above is rotated, tainted and revoked.
nested_rotation() {
	local port old serial
	nested_start || return 1
	s entry create -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/web" -selector "$me" -hint web >/dev/null
	s entry update -entryID "$(s entry show -spiffeID "spiffe://$TD/below" | sed -n 's/^Entry ID *: //p')" -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/below" -selector "$me" -downstream >/dev/null
	port=$(free_port)
	"$TOOLS/workload" -socket "$W/below/public/agent.sock" -name srv -listen "$port" -for 48 >"$W/srv" &
	pids+=($!)
	until_ok 10 grep -q listening "$W/srv" || return 1
	"$TOOLS/workload" -socket "$SOCKET" -name cli -connect "$port" -expect "spiffe://$TD/inner" -every 50 -for 45 >"$W/cli" &
	PAIR=$!
	pids+=("$PAIR")
	until_ok 5 grep -q ' call .* ok' "$W/cli" || return 1
	PATIENCE=15
	old=$(aid x509 active)
	serial=$(identities "$W/srv")
	la x509 prepare && la x509 activate -authorityID "$(aid x509 prepared)" || return 1
	until_ok 8 roots_below 2 || die "the new root has not come down"
	la x509 taint -authorityID "$old" || return 1
	until_ok "$PATIENCE" more_than "$W/srv" "$serial" || die "the SVID below was not renewed"
	until_ok "$PATIENCE" new_root_below || die "below is still under the tainted root"
	la x509 revoke -authorityID "$old" || return 1
	until_ok 8 roots_below 1 || die "the revoked root is below"
	# a JWT key of the server above, the same
	old=$(aid jwt active)
	la jwt prepare && la jwt activate -authorityID "$(aid jwt prepared)" && la jwt taint -authorityID "$old" && la jwt revoke -authorityID "$old" || return 1
	until_ok 8 same_bundles || die "the bundles differ"
	no_call_failed
}

new_root_below() {
	fetch_below && s bundle show -output json | python3 -c "
import base64, json, sys
for a in json.load(sys.stdin)['x509_authorities']:
    if not a.get('tainted'):
        print('-----BEGIN CERTIFICATE-----\n' + a['asn1'] + '\n-----END CERTIFICATE-----')" >"$W/good.pem" &&
		openssl verify -CAfile "$W/good.pem" -untrusted "$W/below/svid.0.pem" "$W/below/svid.0.pem"
}

# Three levels: the JWT key of the lowest reaches the top, the top's root the lowest.
three_levels() {
	nested_start || return 1
	local lport
	lport=$(free_port)
	below "$SERVER" entry create -parentID "spiffe://$TD/below-node" -spiffeID "spiffe://$TD/lowest" -selector "$me" -downstream >/dev/null || return 1
	below "$SERVER" entry delete -entryID "$(below "$SERVER" entry show -spiffeID "spiffe://$TD/inner" | sed -n 's/^Entry ID *: //p')" >/dev/null || return 1
	sed -e "s,$W/below/,$W/lowest/,g" -e "s/bind_port = .*/bind_port = $lport/" -e "s/server_port = .*/server_port = \"$BPORT\"/" \
		-e "s,workload_api_socket = .*,workload_api_socket = \"$W/below/public/agent.sock\"," "$W/below/server.conf" >"$W/lowest.conf"
	"$SERVER" run -config "$W/lowest.conf" >>"$W/lowest.log" 2>&1 &
	pids+=($!)
	until_ok 20 "$SERVER" healthcheck -socketPath "$W/lowest/server.sock" || return 1
	"$SERVER" x509 mint -socketPath "$W/lowest/server.sock" -spiffeID "spiffe://$TD/minted" -write "$W" >/dev/null || return 1
	[ "$(certs "$W/svid.pem")" = 3 ] || die "$(certs "$W/svid.pem") certificates in the chain"
	s bundle show >"$W/roots.pem"
	openssl verify -CAfile "$W/roots.pem" -untrusted "$W/svid.pem" "$W/svid.pem" || return 1
	[ "$(s bundle show -format spiffe | grep -c jwt-svid)" = 3 ] || die "the lowest server's JWT key is not at the top"
	until_ok 12 same_bundles || die "the bundles differ"
	[ "$(bundle_ids "$W/lowest/server.sock")" = "$(bundle_ids "$W/server.sock")" ]
}

# Without an entry the server below waits, and begins as soon as there is one.
nested_waits() {
	server_conf
	both || return 1
	below_conf
	"$SERVER" run -config "$W/below/server.conf" >>"$W/below.log" 2>&1 &
	pids+=($!)
	until_ok 10 grep -q 'no identity issued' "$W/below.log" || return 1
	s entry create -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/below" -selector "$me" >/dev/null || return 1
	until_ok 30 grep -q 'authorization denied for method' "$W/below.log" || die "it needs a downstream entry"
	s entry update -entryID "$(s entry show -spiffeID "spiffe://$TD/below" | sed -n 's/^Entry ID *: //p')" -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/below" -selector "$me" -downstream >/dev/null || return 1
	until_ok 30 below "$SERVER" healthcheck
}

t 'disk: a root' self_signed
t 'disk: an intermediate, over a restart' intermediate
t 'disk: broken files at start' broken_at_start
t 'disk: broken, then another, under mutual TLS; taint and revoke' swap_under_load
t 'nested: chains, bundles, JWTs, restarts' nested
t 'nested: the root above rotated by force under mutual TLS' nested_rotation
t 'nested: three levels' three_levels
t 'nested: waits for its entry' nested_waits
finish
