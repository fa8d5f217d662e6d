#!/bin/bash
# The main job with the real programs: register, attest, fetch, rotate, push, refuse, explain, go on without the server.
source "$(dirname "$0")/lib.sh"

me=unix:uid:$(id -u)

first_svid() {
	both || return 1
	entry web "$me" || return 1
	fetch_ok || return 1
	fetch -write "$W" | grep -q "spiffe://$TD/web" || die "the SVID is not the one registered"
	openssl verify -x509_strict -CAfile "$W/bundle.0.pem" "$W/svid.0.pem" || return 1
	openssl x509 -in "$W/svid.0.pem" -noout -text | grep -q "URI:spiffe://$TD/web" || die "no URI SAN"
	openssl x509 -in "$W/svid.0.pem" -noout -pubkey >"$W/pub1"
	openssl pkey -in "$W/svid.0.key" -pubout >"$W/pub2"
	cmp "$W/pub1" "$W/pub2"
}

strict_certificates() {
	# every kind of certificate that comes out of the server, under OpenSSL's strict rules
	local type
	for type in ec-p256 ec-p384 rsa-2048 rsa-4096; do
		server_conf "ca_key_type = \"$type\""
		server_start || return 1
		s bundle show >"$W/root.pem"
		openssl verify -x509_strict -CAfile "$W/root.pem" "$W/root.pem" || return 1
		mkdir -p "$W/mint"
		s x509 mint -spiffeID "spiffe://$TD/m" -dns a.example.org -dns b.example.org -write "$W/mint" || return 1
		openssl verify -x509_strict -CAfile "$W/root.pem" -purpose sslserver "$W/mint/svid.pem" || return 1
		openssl verify -x509_strict -CAfile "$W/root.pem" -purpose sslclient "$W/mint/svid.pem" || return 1
		# its own status says how the connection ended, which is not what is asked here
		openssl s_client -connect "127.0.0.1:$SPORT" -alpn h2 </dev/null >"$W/shake" 2>&1
		openssl x509 -in "$W/shake" >"$W/server.pem" || return 1
		openssl verify -x509_strict -CAfile "$W/root.pem" "$W/server.pem" || return 1
		kill "$SPID"
		until_ok 5 gone "$SPID" || return 1
		rm -rf "$W/server" "$W/server.conf"
	done
}

no_identity() {
	both || return 1
	entry other unix:uid:65500 || return 1
	sleep 0.3
	fetch >"$W/no" 2>&1 && die "an SVID without a registration"
	grep -q 'no identity issued' "$W/no" || die "$(cat "$W/no")"
	sleep 60 &
	local pid=$!
	pids+=("$pid")
	"$AGENT" explain -socketPath "$W/private/admin.sock" -pid "$pid" >"$W/why" || return 1
	grep -q 'unix:uid:65500' "$W/why" || die "explain does not name the missing selector: $(cat "$W/why")"
}

push() {
	both || return 1
	"$TOOLS/workload" -socket "$W/public/agent.sock" -name w -for 8 >"$W/events" &
	pids+=($!)
	sleep 0.5
	entry web "$me" || return 1
	until_ok 3 grep -q "identity spiffe://$TD/web" "$W/events" || return 1
	local id
	id=$(s entry show | sed -n 's/^Entry ID *: //p' | while read -r i; do
		s entry show -entryID "$i" | grep -q /web && echo "$i"
	done)
	s entry delete -entryID "$id" || return 1
	until_ok 3 grep -q 'refused PermissionDenied no identity issued' "$W/events"
}

rotation() {
	server_conf 'ca_ttl = "1m"
		default_x509_svid_ttl = "10s"'
	both || return 1
	entry web "$me" || return 1
	fetch_ok || return 1
	local port
	port=$(free_port)
	"$TOOLS/workload" -socket "$W/public/agent.sock" -name srv -listen "$port" -for 75 >"$W/srv" &
	local a=$!
	pids+=("$a")
	until_ok 5 grep -q listening "$W/srv" || return 1
	"$TOOLS/workload" -socket "$W/public/agent.sock" -name cli -connect "$port" -expect "spiffe://$TD/web" -every 50 -for 70 >"$W/cli" &
	local b=$!
	pids+=("$b")
	wait "$b" || die "$(grep FAILED "$W/cli" | head -n 5)"
	[ "$(grep -c ' identity ' "$W/cli")" -ge 8 ] || die "too few rotations: $(grep -c ' identity ' "$W/cli")"
	[ "$(s bundle show | grep -c BEGIN)" -ge 2 ] || die "the CA did not rotate"
}

offline() {
	server_conf 'default_x509_svid_ttl = "1h"'
	both || return 1
	entry web "$me" || return 1
	fetch_ok || return 1
	local before after
	before=$(fetch -write "$W" >/dev/null && openssl x509 -in "$W/svid.0.pem" -noout -serial)
	sleep 1.5
	kill -9 "$SPID" "$APID"
	until_ok 5 gone "$APID" || return 1
	"$AGENT" run -config "$W/agent.conf" >>"$W/agent2.log" 2>&1 &
	pids+=($!)
	fetch_ok || die "nothing is served with the server away"
	after=$(fetch -write "$W" >/dev/null && openssl x509 -in "$W/svid.0.pem" -noout -serial)
	[ "$before" = "$after" ] || die "another SVID after the restart: $before, $after"
	server_start || return 1
	entry api "$me" || return 1
	until_ok 30 sh -c "$AGENT api fetch x509 -socketPath $W/public/agent.sock | grep -q /api" || die "the agent does not come back to the server"
}

ban() {
	both || return 1
	entry web "$me" && fetch_ok || return 1
	local id
	id=$(s agent list | sed -n 's/^SPIFFE ID *: //p' | head -n 1)
	s agent ban -spiffeID "$id" || return 1
	until_ok 10 gone "$APID" || die "a banned agent goes on"
	"$AGENT" run -config "$W/agent.conf" >>"$W/agent.log" 2>&1 &
	local again=$!
	pids+=("$again")
	sleep 2
	fetch && die "a banned agent serves"
	return 0
}

evict() {
	both || return 1
	local id
	id=$(s agent list | sed -n 's/^SPIFFE ID *: //p' | head -n 1)
	s agent evict -spiffeID "$id" || return 1
	s agent list | grep -q 'No attested agents found' || return 1
}

t 'first SVID, good for OpenSSL' first_svid
t 'every kind of certificate is strict' strict_certificates
t 'no identity, and explain says why' no_identity
t 'registration is pushed to an open stream, and so is its end' push
t 'mutual TLS every 50 ms through rotations of SVIDs and CA' rotation
t 'kill -9 of both, the agent serves without the server' offline
t 'ban' ban
t 'evict' evict
finish
