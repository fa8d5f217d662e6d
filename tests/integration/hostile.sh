#!/bin/bash
# Hostile clients at both doors: everybody else is served all the while, memory stays bounded, nothing is left afterwards.
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"

LIMIT_MB=160
SECONDS_EACH=2

high_water() { awk '/^VmHWM/ {print int($2 / 1024)}' "/proc/$1/status"; }
descriptors() { find "/proc/$1/fd" -mindepth 1 2>/dev/null | wc -l; }
few_descriptors() { [ "$(descriptors "$1")" -le $(($2 + 20)) ]; }

# Workloads and operators, one after the other, while $1 (a process) runs: none may fail.
serve_meanwhile() {
	local n=0
	while ! gone "$1"; do
		timeout 20 "${@:2}" >/dev/null 2>"$W/victim" || die "a victim failed after $n: $(cat "$W/victim")"
		n=$((n + 1))
	done
	echo "$n served"
	[ "$n" -gt 0 ]
}

bounded() {
	local mb
	mb=$(high_water "$1")
	[ "$mb" -le $LIMIT_MB ] || die "held $mb MB"
}

# agent_attack MODE [N]
agent_attack() {
	local before h
	both && entry wl unix:uid:"$(id -u)" >/dev/null || return 1
	until_ok 10 "$AGENT" api fetch x509 -socketPath "$W/public/agent.sock" -silent || return 1
	before=$(descriptors "$APID")
	"$TOOLS/hostile" "$1" "unix:$W/public/agent.sock" $SECONDS_EACH "${2:-1000}" &
	h=$!
	pids+=("$h")
	sleep 0.2
	serve_meanwhile $h "$AGENT" api fetch x509 -socketPath "$W/public/agent.sock" -silent &&
		bounded "$APID" && until_ok 10 few_descriptors "$APID" "$before"
}

# The agent's stream at the server goes on, and the operator's socket is served.
server_attack() {
	local before h
	both && entry wl unix:uid:"$(id -u)" >/dev/null || return 1
	before=$(descriptors "$SPID")
	"$TOOLS/hostile" "$1" "tcp:127.0.0.1:$SPORT" $SECONDS_EACH "${2:-1000}" &
	h=$!
	pids+=("$h")
	sleep 0.2
	serve_meanwhile $h "$SERVER" entry show -socketPath "$W/server.sock" &&
		entry late unix:uid:"$(id -u)" >/dev/null &&
		until_ok 15 fetched_late && bounded "$SPID" && until_ok 15 few_descriptors "$SPID" "$before"
}

fetched_late() { "$AGENT" api fetch x509 -socketPath "$W/public/agent.sock" | grep -q "spiffe://$TD/late"; }

for mode in continuation huge-header hpack-bomb streams resets made-resets pings settings message garbage slow-reader deaf-calls; do
	t "agent, $mode" agent_attack $mode
done
t "agent, 10,000 silent connections" agent_attack silent 10000
t "agent, 10,000 idle connections" agent_attack idle 10000
t "agent, 10,000 connections with a call" agent_attack hold 10000
for mode in garbage tls-garbage; do
	t "server, $mode" server_attack $mode
done
t "server, 2,000 half handshakes" server_attack slow-tls 2000
finish
