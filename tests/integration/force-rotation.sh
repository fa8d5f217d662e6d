#!/bin/bash
# Authorities rotated by an operator's word (prepare, activate, taint, revoke), X.509 and JWT, under workloads that call each other every 50 ms: no call may fail.
source "$(dirname "$0")/lib.sh"

me=unix:uid:$(id -u)

. tests/integration/authorities.inc

x509() {
	server_conf 'default_x509_svid_ttl = "1h"'
	both && entry web "$me" && fetch_ok || return 1
	pair 14 || return 1
	x509_rotation && x509_rotation || return 1
	no_call_failed
}

all_seen() { ! la x509 show | grep -q 'have not seen'; }

restart_server() {
	kill -9 "$SPID"
	until_ok 5 gone "$SPID" || return 1
	server_start
	# the agent comes back by itself
	until_ok 20 all_seen
}

x509_with_restarts() {
	server_conf 'default_x509_svid_ttl = "1h"'
	both && entry web "$me" && fetch_ok || return 1
	pair 30 || return 1
	x509_rotation restart_server || return 1
	no_call_failed
}

issued() { [ "$(grep -c 'X509-SVID issued' "$W/agent.log")" -ge "$1" ]; }

# Every SVID that the agent keeps moves, in batches.
many() {
	server_conf 'default_x509_svid_ttl = "1h"'
	both || return 1
	python3 - "$TD" "$me" >"$W/entries.json" <<-'END'
		import json, sys
		td, me = sys.argv[1:]
		print(json.dumps({"entries": [{"spiffe_id": "spiffe://%s/w%d" % (td, i), "parent_id": "spiffe://%s/node" % td,
		    "selectors": [{"type": "unix", "value": me[5:] if i == 0 else "uid:%d" % (70000 + i)}]} for i in range(400)]}))
	END
	s entry create -data "$W/entries.json" >/dev/null || return 1
	# these, and the agent's alias
	until_ok 15 issued 401 || return 1
	local old
	old=$(aid x509 active)
	la x509 prepare >/dev/null && la x509 activate -authorityID "$(aid x509 prepared)" >/dev/null || return 1
	la x509 taint -authorityID "$old" >/dev/null || return 1
	until_ok 15 issued 802 || die "not all were signed anew: $(grep -c 'X509-SVID issued' "$W/agent.log")"
	sleep 1
	[ "$(grep -c 'X509-SVID issued' "$W/agent.log")" -eq 802 ] || die "some were signed more than once"
}

# An agent that was stopped between taint and renewal does it when it starts.
agent_restart_after_taint() {
	server_conf 'default_x509_svid_ttl = "1h"'
	both && entry web "$me" && fetch_ok || return 1
	sleep 1.5
	fetch -write "$W" >/dev/null
	local before old
	before=$(openssl x509 -in "$W/svid.0.pem" -noout -serial)
	old=$(aid x509 active)
	la x509 prepare || return 1
	# it must have seen the new root, or it trusts the server no more
	until_ok 5 all_seen || return 1
	sleep 1.5
	kill -9 "$APID"
	until_ok 5 gone "$APID" || return 1
	la x509 activate -force -authorityID "$(aid x509 prepared)" && la x509 taint -authorityID "$old" || return 1
	"$AGENT" run -config "$W/agent.conf" >>"$W/agent.log" 2>&1 &
	pids+=($!)
	until_ok 15 sh -c "'$AGENT' api fetch x509 -socketPath '$W/public/agent.sock' -write '$W' >/dev/null && [ \"\$(openssl x509 -in '$W/svid.0.pem' -noout -serial)\" != '$before' ]" || die "the SVID is still of the tainted root"
}

jwt() {
	both && entry web "$me" && fetch_ok || return 1
	jwt_calls &
	local calls=$!
	jwt_rotation && sleep 0.5 && jwt_rotation || return 1
	touch "$W/stop"
	wait "$calls"
	[ ! -s "$W/jwt-failed" ] || die "failed: $(sort "$W/jwt-failed" | uniq -c)"
	echo "$(wc -l <"$W/jwt-calls") calls"
}

# An agent that does not answer is waited for, named, and passed over only by force.
waits_for_agents() {
	both && entry web "$me" && fetch_ok || return 1
	local agent new from
	agent=$(s agent list | sed -n 's/^SPIFFE ID *: //p' | head -n 1)
	kill -STOP "$APID"
	la x509 prepare || return 1
	new=$(aid x509 prepared)
	la x509 show | tee "$W/show" | grep -A 2 'have not seen the prepared authority yet: 1' | grep -q "$agent" || die "show does not name the agent: $(cat "$W/show")"
	from=$SECONDS
	la x509 activate -authorityID "$new" >"$W/activate" 2>&1 && die "activated although an agent has not seen it"
	grep -q "FailedPrecondition.*1 agent has not seen this authority yet: $agent" "$W/activate" || die "$(cat "$W/activate")"
	[ $((SECONDS - from)) -ge 9 ] || die "it did not wait"
	la x509 activate -force -authorityID "$new" || return 1
	kill -CONT "$APID"
	la x509 prepare && la x509 activate -authorityID "$(aid x509 prepared)"
}

prepared_twice() {
	server_start || return 1
	local one
	la x509 prepare || return 1
	one=$(aid x509 prepared)
	la x509 prepare || return 1
	bundle_is x509 2 || die "the replaced root is in the bundle"
	la x509 activate -authorityID "$one" >"$W/activate" 2>&1 && die "the replaced one was activated"
	grep -q 'unexpected authority ID' "$W/activate" || die "$(cat "$W/activate")"
	la jwt prepare && la jwt prepare && bundle_is jwt 2
}

t 'X.509: prepare, activate, taint, revoke under mutual TLS, twice' x509
t 'X.509: the same with the server killed after each step' x509_with_restarts
t 'X.509: 400 SVIDs move after a taint, each once' many
t 'X.509: an agent that was away during the taint' agent_restart_after_taint
t 'JWT: prepare, activate, taint, revoke under calls, twice' jwt
t 'an activation waits for agents, unless forced' waits_for_agents
t 'prepared twice' prepared_twice
finish
