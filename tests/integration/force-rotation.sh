#!/bin/bash
# Authorities rotated by an operator's word (prepare, activate, taint, revoke), X.509 and JWT, under workloads that call each other every 50 ms: no call may fail.
source "$(dirname "$0")/lib.sh"

me=unix:uid:$(id -u)

# la KIND VERB [FLAGS…]
la() {
	local kind=$1 verb=$2
	shift 2
	"$SERVER" localauthority "$kind" "$verb" -socketPath "$W/server.sock" "$@"
}

# id KIND SLOT: the authority's id; empty when there is none
id() {
	la "$1" show -output json | python3 -c "import json, sys; print((json.load(sys.stdin).get('$2') or {}).get('authority_id', ''))"
}

# in_bundle KIND FIELD: how many authorities the bundle has; with "tainted", how many are
in_bundle() {
	s bundle show -output json | python3 -c "
import json, sys
v = json.load(sys.stdin)['$1_authorities']
print(len([a for a in v if '$2' != 'tainted' or a['tainted']]))"
}

# how many different SVIDs a workload has had
identities() { sed -n 's/.* identity .* serial \([^ ]*\).*/\1/p' "$1" | sort -u | wc -l; }
more_than() { [ "$(identities "$1")" -gt "$2" ]; }
bundle_is() { [ "$(in_bundle "$1" all)" = "$2" ]; }
agent_serial() { s agent list | sed -n 's/^Serial number *: //p' | head -n 1; }
new_agent_serial() { [ "$(agent_serial)" != "$1" ]; }

# pair SECONDS: two workloads that do mutual TLS every 50 ms; their events in $W/srv and $W/cli
pair() {
	local port
	port=$(free_port)
	"$TOOLS/workload" -socket "$W/public/agent.sock" -name srv -listen "$port" -for "$(($1 + 3))" >"$W/srv" &
	pids+=($!)
	until_ok 10 grep -q listening "$W/srv" || return 1
	"$TOOLS/workload" -socket "$W/public/agent.sock" -name cli -connect "$port" -expect "spiffe://$TD/web" -every 50 -for "$1" >"$W/cli" &
	PAIR=$!
	pids+=("$PAIR")
	until_ok 5 grep -q ' call .* ok' "$W/cli"
}

no_call_failed() {
	wait "$PAIR" || die "calls failed: $(grep FAILED "$W/cli" "$W/srv" | head -n 5)"
	! grep -h FAILED "$W/cli" "$W/srv" || die "calls failed"
	echo "$(grep -c ' call .* ok' "$W/cli") calls"
}

# x509_rotation [BETWEEN]: prepare to revoke; BETWEEN is done after each step
x509_rotation() {
	local between=${1:-true} old new serial before
	serial=$(agent_serial)
	before=$(identities "$W/cli")
	old=$(id x509 active)
	la x509 prepare || return 1
	new=$(id x509 prepared)
	bundle_is x509 2 || die "the prepared root is not in the bundle"
	"$between" || return 1
	la x509 activate -authorityID "$new" || return 1
	[ "$(id x509 old)" = "$old" ] || die "the old authority is not shown"
	"$between" || return 1
	[ "$(identities "$W/cli")" = "$before" ] || die "an activation signs nothing anew"
	la x509 taint -authorityID "$old" || return 1
	[ "$(in_bundle x509 tainted)" = 1 ] || die "the bundle shows no taint"
	"$between" || return 1
	until_ok 10 more_than "$W/cli" "$before" || die "the client's SVID was not renewed"
	until_ok 10 more_than "$W/srv" "$before" || die "the server's SVID was not renewed"
	until_ok 10 new_agent_serial "$serial" || die "the agent's own SVID was not renewed"
	bundle_is x509 2 || die "the tainted root left the bundle before its revocation"
	la x509 revoke -authorityID "$old" || return 1
	bundle_is x509 1 || die "the revoked root is in the bundle"
	"$between" || return 1
	bundle_is x509 1 || die "the revoked root came back"
	s bundle show >"$W/roots.pem"
	fetch -write "$W" >/dev/null || return 1
	openssl verify -x509_strict -CAfile "$W/roots.pem" "$W/svid.0.pem"
}

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
	old=$(id x509 active)
	la x509 prepare >/dev/null && la x509 activate -authorityID "$(id x509 prepared)" >/dev/null || return 1
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
	old=$(id x509 active)
	la x509 prepare || return 1
	# it must have seen the new root, or it trusts the server no more
	until_ok 5 all_seen || return 1
	sleep 1.5
	kill -9 "$APID"
	until_ok 5 gone "$APID" || return 1
	la x509 activate -force -authorityID "$(id x509 prepared)" && la x509 taint -authorityID "$old" || return 1
	"$AGENT" run -config "$W/agent.conf" >>"$W/agent.log" 2>&1 &
	pids+=($!)
	until_ok 15 sh -c "'$AGENT' api fetch x509 -socketPath '$W/public/agent.sock' -write '$W' >/dev/null && [ \"\$(openssl x509 -in '$W/svid.0.pem' -noout -serial)\" != '$before' ]" || die "the SVID is still of the tainted root"
}

tokens() { "$AGENT" api fetch jwt -audience a -socketPath "$W/public/agent.sock" | grep -o 'eyJ[A-Za-z0-9_.-]*' | head -n 1; }
valid() { "$AGENT" api validate jwt -audience a -svid "$1" -socketPath "$W/public/agent.sock" >/dev/null; }
kid() { python3 -c "import base64, json, sys; h = sys.argv[1].split('.')[0]; print(json.loads(base64.urlsafe_b64decode(h + '=' * (-len(h) % 4)))['kid'])" "$1"; }
token_of() { [ "$(kid "$(tokens)")" = "$1" ]; }

# jwt_calls: fetches and validates until $W/stop is there; a line for each failure in $W/jwt-failed
jwt_calls() {
	local t
	while [ ! -e "$W/stop" ]; do
		t=$(tokens) && [ -n "$t" ] || echo "fetch" >>"$W/jwt-failed"
		valid "$t" || echo "validate $(kid "$t")" >>"$W/jwt-failed"
		echo ok >>"$W/jwt-calls"
		sleep 0.05
	done
}

jwt_rotation() {
	local old new held
	old=$(id jwt active)
	held=$(tokens)
	[ "$(kid "$held")" = "$old" ] || die "the token is not of the active key"
	la jwt prepare || return 1
	new=$(id jwt prepared)
	la jwt activate -authorityID "$new" || return 1
	valid "$held" || return 1
	la jwt taint -authorityID "$old" || return 1
	until_ok 5 token_of "$new" || die "the agent hands out a token of the tainted key"
	valid "$held" || die "a token must stay valid until the revocation"
	[ "$(in_bundle jwt tainted)" = 1 ] || die "the bundle shows no taint"
	la jwt revoke -authorityID "$old" || return 1
	bundle_is jwt 1 || die "the revoked key is in the bundle"
	sleep 0.3
	! valid "$held" || die "a token of a revoked key is valid"
	valid "$(tokens)"
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
	new=$(id x509 prepared)
	la x509 show | tee "$W/show" | grep -A 2 'have not seen the prepared authority yet: 1' | grep -q "$agent" || die "show does not name the agent: $(cat "$W/show")"
	from=$SECONDS
	la x509 activate -authorityID "$new" >"$W/activate" 2>&1 && die "activated although an agent has not seen it"
	grep -q "FailedPrecondition.*1 agent has not seen this authority yet: $agent" "$W/activate" || die "$(cat "$W/activate")"
	[ $((SECONDS - from)) -ge 9 ] || die "it did not wait"
	la x509 activate -force -authorityID "$new" || return 1
	kill -CONT "$APID"
	la x509 prepare && la x509 activate -authorityID "$(id x509 prepared)"
}

prepared_twice() {
	server_start || return 1
	local one
	la x509 prepare || return 1
	one=$(id x509 prepared)
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
