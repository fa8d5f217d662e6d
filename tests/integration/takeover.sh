#!/bin/bash
# A SPIRE server's data folder (written by tests/tools/as-spire.py) taken over under a running agent and workloads that call each other every 50 ms: the agent
# does not attest anew, and no call may fail.
source "$(dirname "$0")/lib.sh"

me=unix:uid:$(id -u)

. tests/integration/authorities.inc

stop_server() {
	kill "$SPID"
	until_ok 10 gone "$SPID"
}

import() { "$SERVER" import -config "$W/server.conf" -spireDataDir "$W/spire" "$@"; }

# The server in server.conf is gone, and $W/spire is what "SPIRE" left
become_spire() {
	stop_server || return 1
	python3 tests/tools/as-spire.py "$W/server" "$W/spire" || return 1
	mv "$W/server" "$W/was"
}

attestations() { grep -c 'agent attested' "$W/server.log"; }

takeover() {
	server_conf 'default_x509_svid_ttl = "20s"
	agent_ttl = "20s"
	ca_ttl = "10m"'
	both && entry web "$me" -- -dns w2 -dns w1 -hint h && fetch_ok || return 1
	s bundle show -format spiffe | s bundle set -format spiffe -id spiffe://other.org >/dev/null || return 1
	s federation create -trustDomain web.org -bundleEndpointURL https://127.0.0.1:1/ -bundleEndpointProfile https_web >/dev/null || return 1
	entry far unix:uid:70000 -- -federatesWith spiffe://other.org >/dev/null || return 1
	la x509 prepare >/dev/null || return 1
	pair 30 || return 1
	local active prepared sums
	active=$(aid x509 active) prepared=$(aid x509 prepared)
	s entry show -output json >"$W/entries.before" && s bundle list -format spiffe >"$W/bundles.before" || return 1
	s federation list -output json >"$W/federation.before" || return 1
	become_spire || return 1
	sums=$(sha256sum "$W"/spire/*)
	import -dryRun | grep 'attested agents: 1' || die "nothing would be taken"
	[ ! -e "$W/server" ] || die "the dry run has written"
	import || die "import"
	[ "$(sha256sum "$W"/spire/*)" = "$sums" ] || die "the source was written to"
	import | grep 'taken over already' || die "the second import does not see the first"
	server_start || return 1
	[ "$(aid x509 active)" = "$active" ] && [ "$(aid x509 prepared)" = "$prepared" ] || die "other authorities"
	s entry show -output json | diff "$W/entries.before" - || die "other entries"
	s bundle list -format spiffe | diff "$W/bundles.before" - || die "other bundles"
	s federation list -output json | diff "$W/federation.before" - || die "other federation"
	import && die "an import under a running server"
	# the agent comes back, renews itself and the workload's SVID
	entry late unix:uid:70001 || return 1
	until_ok 20 grep -q 'SVID issued.*/late' "$W/agent.log" || die "the agent has not come back"
	local renewed
	renewed=$(grep -c 'agent SVID renewed' "$W/server.log")
	until_ok 25 sh -c "[ \"\$(grep -c 'agent SVID renewed' '$W/server.log')\" -gt $renewed ]" || die "the agent was not renewed"
	[ "$(attestations)" -eq 1 ] || die "the agent attested anew"
	no_call_failed
}

# The prepared authority has come with its key, and is as good as any.
activates() {
	server_conf
	both && entry web "$me" && fetch_ok && la x509 prepare >/dev/null || return 1
	local prepared
	prepared=$(aid x509 prepared)
	become_spire && import && server_start || return 1
	until_ok 20 la x509 activate -authorityID "$prepared" || die "cannot be activated"
	[ "$(aid x509 active)" = "$prepared" ]
}

# refused TEXT FLAGS…
refused() {
	local text=$1
	shift
	import "$@" >"$W/said" 2>&1 && die "not refused"
	grep "$text" "$W/said" || die "says: $(cat "$W/said")"
}

refusals() {
	server_start || return 1
	cp -r "$W/server" "$W/other"
	become_spire || return 1
	refused 'No such file' -spireDatastore "$W/none" && refused 'cannot be taken over' -spireKeys "$W/none" || return 1
	[ ! -e "$W/server" ] || die "a refused import has written"
	mv "$W/other" "$W/server"
	refused 'holds other data' && refused 'spireDataDir is required' -spireDataDir ''
}

t 'a server is taken over under a running agent' takeover
t 'what was prepared can be activated' activates
t 'imports that must not be' refusals
finish
