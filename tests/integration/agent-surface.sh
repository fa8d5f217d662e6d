#!/bin/bash
# The agent's less usual options: bootstrapping anew, rate limits, verifiers without an identity, caches, reloading.
source "$(dirname "$0")/lib.sh"

# node_pki: $W/ca.pem and a node's certificate and key for x509pop
node_pki() {
	openssl ecparam -name prime256v1 -genkey -noout -out "$W/ca.key" &&
		openssl req -x509 -new -key "$W/ca.key" -days 2 -subj /CN=ca -out "$W/ca.pem" \
			-addext keyUsage=critical,keyCertSign &&
		openssl ecparam -name prime256v1 -genkey -noout -out "$W/leaf.key" &&
		openssl req -new -key "$W/leaf.key" -subj /CN=node-one -out "$W/leaf.csr" &&
		openssl x509 -req -in "$W/leaf.csr" -CA "$W/ca.pem" -CAkey "$W/ca.key" -CAcreateserial -days 1 -out "$W/leaf.pem" \
			-extfile <(echo keyUsage=critical,digitalSignature) || return 1
	POP_SERVER="NodeAttestor \"x509pop\" { plugin_data { ca_bundle_path = \"$W/ca.pem\" } }"
	POP_AGENT="NodeAttestor \"x509pop\" { plugin_data { private_key_path = \"$W/leaf.key\" certificate_path = \"$W/leaf.pem\" } }"
}

# another_server: ends the server, and starts one of the same name and port with keys of its own
another_server() {
	kill "$SPID"
	until_ok 15 gone "$SPID" || return 1
	rm -rf "$W/server"
	server_start &&
		s entry create -node -spiffeID "spiffe://$TD/node" -selector x509pop:subject:cn:node-one >/dev/null &&
		entry web "unix:uid:$(id -u)" >/dev/null
}

popped() {
	node_pki && server_conf '' "$POP_SERVER" && server_start || return 1
	agent_conf "$1" "$POP_AGENT"
	agent_start || return 1
	s entry create -node -spiffeID "spiffe://$TD/node" -selector x509pop:subject:cn:node-one >/dev/null || return 1
	entry web "unix:uid:$(id -u)" >/dev/null
	fetch_ok
}

# vouched_for: the workload's SVID is signed by the server that runs now
vouched_for() {
	fetch -write "$W" >/dev/null && s bundle show >"$W/now.pem" && openssl verify -CAfile "$W/now.pem" -untrusted "$W/svid.0.pem" "$W/svid.0.pem"
}

rebootstrap() {
	popped 'rebootstrap_mode = "auto"
		rebootstrap_delay = "2s"' || return 1
	until_ok 5 vouched_for || return 1
	another_server || return 1
	until_ok 20 grep -q 'bootstrapping anew if that lasts' "$W/agent.log" || return 1
	# The source still has the bundle of the old server: the agent goes on with what it has, and tries again.
	fetch >/dev/null || die "the agent serves no more"
	until_ok 20 grep -q 'do not agree: bootstrapping anew' "$W/agent.log" || return 1
	s bundle show >"$W/bundle.pem"
	until_ok 40 vouched_for || return 1
	gone "$APID" && die "the agent has ended"
	[ "$(grep -c 'Node attestation was successful' "$W/agent.log")" -eq 2 ] || die "not attested twice"
}

no_rebootstrap() {
	popped '' || return 1
	another_server || return 1
	s bundle show >"$W/bundle.pem"
	until_ok 20 grep -q 'unknown authority' "$W/agent.log" || return 1
	grep -q 'bootstrapping anew' "$W/agent.log" && die "it bootstraps anew though it must not"
	fetch >/dev/null || die "the agent serves no more"
}

# an agent that cannot attest twice: auto gives up the idea, always the agent
only_once() {
	server_start || return 1
	agent_conf 'rebootstrap_mode = "auto"'
	agent_start -joinToken "$(token)" || return 1
	grep -q 'lets this agent attest only once.*never, from now on' "$W/agent.log" || die "no warning"
	kill "$APID"
	until_ok 10 gone "$APID" || return 1
	sed -i 's/"auto"/"always"/' "$W/agent.conf"
	"$AGENT" run -config "$W/agent.conf" >>"$W/agent.log" 2>&1
	[ $? -eq 1 ] || die "the agent did not end with 1"
}

rate_limit() {
	server_start || return 1
	agent_conf 'experimental { ratelimit { fetch_x509_svid = 3 } }'
	agent_start -joinToken "$(token)" || return 1
	entry web "unix:uid:$(id -u)" >/dev/null
	sleep 1.5
	local ok=0 limited=0
	for _ in 1 2 3 4 5 6 7 8; do
		if fetch >"$W/o" 2>&1; then
			ok=$((ok + 1))
		elif grep -q 'rate limit exceeded for /SpiffeWorkloadAPI/FetchX509SVID' "$W/o"; then
			limited=$((limited + 1))
		fi
	done
	echo "$ok $limited"
	[ "$ok" -ge 3 ] && [ "$ok" -le 5 ] && [ $((ok + limited)) -eq 8 ] || die "$ok were let through, $limited not"
	# other methods are not limited, and tokens come back
	"$AGENT" api fetch jwt -audience x -socketPath "$W/public/agent.sock" >/dev/null || die "JWT is limited too"
	fetch_ok
}

unauthenticated() {
	server_start || return 1
	agent_conf 'allow_unauthenticated_verifiers = true'
	agent_start -joinToken "$(token)" || return 1
	"$TOOLS/workload" "$W/public/agent.sock" bundles >"$W/o" 2>&1 || true
	fetch >"$W/o" 2>&1 && die "an SVID without an entry"
	grep -q 'no identity issued' "$W/o" || die "$(cat "$W/o")"
	# The bundles come all the same: another agent begins with them.
	second_agent || return 1
}

# second_agent: one that has its first trust from the Workload API of the other
second_agent() {
	sed -e "s|$W/agent\"|$W/agent2\"|; s|$W/public/|$W/public2/|; s|$W/private/|$W/private2/|" \
		-e "s|trust_bundle_path = .*|trust_bundle_spiffe_workload_api = \"unix://$W/public/agent.sock\"|" "$W/agent.conf" >"$W/agent2.conf"
	sed -i "s|directory = .*|directory = \"$W/agent2\"|" "$W/agent2.conf"
	"$AGENT" run -config "$W/agent2.conf" -joinToken "$(token)" >>"$W/agent2.log" 2>&1 &
	pids+=("$!")
	until_ok 15 "$AGENT" healthcheck -socketPath "$W/public2/agent.sock"
}

# cached N: so many X509-SVIDs are held
cached() { "$AGENT" debug getinfo -socketPath "$W/private/admin.sock" | grep -q "Cached X.509 SVIDs: *$1\$"; }

# Pre-fetched up to the limit; one that is not among them is had on demand, and takes the place of another.
cache_size() {
	server_start || return 1
	agent_conf 'x509_svid_cache_max_size = 3'
	agent_start -joinToken "$(token)" || return 1
	for i in 1 2 3 4 5 6; do
		entry "w$i" "unix:uid:$((70000 + i))" >/dev/null || return 1
	done
	entry web "unix:uid:$(id -u)" >/dev/null
	fetch_ok || return 1
	until_ok 5 cached 3 || return 1
	fetch >"$W/o" || die "an SVID in use was taken away"
}

# balancer PORT TO HEADER: passes TCP on, with the header first
balancer() {
	python3 - "$@" <<-'PY' &
		import socket, sys, threading
		def copy(a, b):
		    try:
		        while d := a.recv(65536):
		            b.sendall(d)
		    except OSError:
		        pass
		    for s in (a, b):
		        try:
		            s.shutdown(socket.SHUT_RDWR)
		        except OSError:
		            pass
		l = socket.create_server(("127.0.0.1", int(sys.argv[1])))
		while True:
		    a, _ = l.accept()
		    b = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
		    b.sendall(sys.argv[3].encode().decode("unicode_escape").encode("latin-1"))
		    for x, y in ((a, b), (b, a)):
		        threading.Thread(target=copy, args=(x, y), daemon=True).start()
	PY
	pids+=("$!")
}

proxied() {
	local port
	server_conf 'proxy_protocol_trusted_cidrs = ["127.0.0.0/8"]' && server_start || return 1
	port=$(free_port)
	balancer "$port" "$SPORT" 'PROXY TCP4 198.51.100.7 192.0.2.1 4000 8081\r\n'
	agent_conf
	sed -i "s/server_port = .*/server_port = $port/" "$W/agent.conf"
	agent_start -joinToken "$(token)" || return 1
	grep -q 'AttestAgent.*caller_addr=198.51.100.7' "$W/server.log" || die 'the address is not that of the header'
}

proxied_from_elsewhere() {
	local port
	server_conf 'proxy_protocol_trusted_cidrs = ["192.0.2.0/24"]' && server_start || return 1
	port=$(free_port)
	balancer "$port" "$SPORT" 'PROXY TCP4 198.51.100.7 192.0.2.1 4000 8081\r\n'
	agent_conf
	sed -i "s/server_port = .*/server_port = $port/" "$W/agent.conf"
	s bundle show >"$W/bundle.pem"
	"$AGENT" run -config "$W/agent.conf" -joinToken "$(token)" >>"$W/agent.log" 2>&1 &
	pids+=("$!")
	until_ok 10 grep -q 'Node attestation failed' "$W/agent.log" || return 1
	grep -q 'caller_addr=198.51.100.7' "$W/server.log" && die 'a header from elsewhere is believed'
	return 0
}

pq_only() {
	server_conf 'experimental { require_pq_kem = true }' && server_start || return 1
	agent_conf 'experimental { require_pq_kem = true }'
	agent_start -joinToken "$(token)" || return 1
	echo | timeout 10 openssl s_client -connect "127.0.0.1:$SPORT" -groups X25519:P-256 -alpn h2 >"$W/o" 2>&1
	grep -q 'handshake failure\|no shared\|alert' "$W/o" || die "$(cat "$W/o")"
}

reload_agent() {
	both || return 1
	sed -i 's/log_level = "DEBUG"/log_level = "WARN"/; s/server_port = .*/server_port = 9/' "$W/agent.conf"
	echo 'agent { nonsense = 1 }' >>"$W/agent.conf"
	kill -HUP "$APID"
	until_ok 5 grep -q 'The configuration is not taken.*unknown key' "$W/agent.log" || return 1
	sed -i '$d' "$W/agent.conf"
	sed -i 's/log_level = "WARN"/log_level = "INFO"\n log_selectors = ["unix:uid"]/' "$W/agent.conf"
	kill -USR1 "$APID"
	until_ok 5 grep -q 'Configuration changed.*key=agent.log_level .*is=.*info.*effect=now' "$W/agent.log" || return 1
	grep -q 'Configuration changed.*key=agent.server_port .*effect="at the next start"' "$W/agent.log" || die 'the port is not mentioned'
	until_ok 5 grep -q 'Configuration read again' "$W/agent.log" || return 1
	fetch >"$W/o" 2>&1
	until_ok 5 grep -q "No identity issued.*selectors=.*unix:uid:$(id -u)" "$W/agent.log" || return 1
	"$AGENT" logger get -socketPath "$W/private/admin.sock" | grep -qi 'Logger Level *: *info' || die "$("$AGENT" logger get -socketPath "$W/private/admin.sock")"
	kill -HUP "$APID" # nothing changed
	gone "$APID" && die 'the agent has ended'
	return 0
}

# The CA of a node attestor, named in a file of its own: another one is trusted after a signal.
reload_server() {
	node_pki || return 1
	mv "$W/ca.pem" "$W/right.pem"
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$W/other.key" -out "$W/other.pem" -days 2 -subj /CN=other 2>/dev/null
	echo "ca_bundle_path = \"$W/other.pem\"" >"$W/pop.conf"
	server_conf '' "NodeAttestor \"x509pop\" { plugin_data_file = \"$W/pop.conf\" }" && server_start || return 1
	s bundle show >"$W/bundle.pem"
	agent_conf '' "$POP_AGENT"
	"$AGENT" run -config "$W/agent.conf" >>"$W/agent.log" 2>&1 && die 'attested by a CA that nobody trusts'
	echo "ca_bundle_path = \"$W/none.pem\"" >"$W/pop.conf"
	kill -USR1 "$SPID"
	until_ok 5 grep -q 'configuration is not taken.*none.pem' "$W/server.log" || return 1
	echo "ca_bundle_path = \"$W/right.pem\"" >"$W/pop.conf"
	sed -i 's/log_level = "DEBUG"/log_level = "INFO"/' "$W/server.conf"
	kill -HUP "$SPID"
	until_ok 5 grep -q 'configuration changed.*ca_bundle_path.*effect=now' "$W/server.log" || return 1
	until_ok 5 grep -q 'read again' "$W/server.log" || return 1
	agent_start || return 1
	kill "$SPID"
	until_ok 10 gone "$SPID"
}

# The bodies that SPIRE's programs give, which scripts compare.
health() {
	local sport aport
	sport=$(free_port) aport=$(free_port)
	server_conf
	echo "health_checks { listener_enabled = true bind_address = \"127.0.0.1\" bind_port = \"$sport\" }" >>"$W/server.conf"
	server_start || return 1
	[ "$(curl -s "http://127.0.0.1:$sport/ready")" = '{"catalog.datastore":{},"server":{},"server.ca":{},"server.ca.rotator":{}}' ] ||
		die "$(curl -s "http://127.0.0.1:$sport/ready")"
	agent_conf
	echo "health_checks { listener_enabled = true bind_address = \"127.0.0.1\" bind_port = \"$aport\" }" >>"$W/agent.conf"
	agent_start -joinToken "$(token)" || return 1
	[ "$(curl -s "http://127.0.0.1:$aport/live")" = '{"agent":{}}' ] || die "$(curl -s "http://127.0.0.1:$aport/live")"
	[ "$(curl -s "http://127.0.0.1:$aport/ready")" = '{"agent":{"in_step":true}}' ] || die "$(curl -s "http://127.0.0.1:$aport/ready")"
	[ "$(curl -so "$W/o" -w '%{http_code}' "http://127.0.0.1:$aport/else")" = 404 ] || die 'no 404'
}

t 'bootstrapping anew' rebootstrap
t 'not bootstrapping anew' no_rebootstrap
t 'an agent that attests only once' only_once
t 'rate limit' rate_limit
t 'verifiers without an identity, trust from a Workload API' unauthenticated
t 'PROXY protocol' proxied
t 'PROXY protocol, from elsewhere' proxied_from_elsewhere
t 'require_pq_kem' pq_only
t 'health' health
t 'configuration read again: agent' reload_agent
t 'configuration read again: server' reload_server
t 'limit of cached X509-SVIDs' cache_size
finish
