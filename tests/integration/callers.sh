#!/bin/bash
# Nobody gets an identity that is not theirs: pids that end or are taken over by another process, and the agent's view of users.
source "$(dirname "$0")/lib.sh"

victim=61001 attacker=61002

# Until all that runs in the background has ended, but for the server and the agent.
wait_others() {
	local p
	for p in $(jobs -p); do
		[ "$p" = "$SPID" ] || [ "$p" = "$APID" ] || wait "$p" 2>/dev/null
	done
}

# In a pid namespace of its own (the agent too), so that pids can be chosen.
pid_reuse() {
	[ "$(id -u)" = 0 ] || skip 'needs root for a pid namespace'
	unshare --pid --fork --mount-proc test -w /proc/sys/kernel/ns_last_pid 2>/dev/null || skip 'pids cannot be chosen here'
	server_start || return 1
	mkdir -p "$W/agent"
	s bundle show >"$W/bundle.pem"
	agent_conf
	local token
	token=$(token)
	entry victim "unix:uid:$victim" || return 1
	cat >"$W/inside" <<-EOF
		"$AGENT" run -config "$W/agent.conf" -joinToken "$token" >>"$W/agent.log" 2>&1 &
		a=\$!
		for i in \$(seq 100); do
			"$AGENT" healthcheck -socketPath "$W/public/agent.sock" >/dev/null 2>&1 && break
			sleep 0.1
		done
		# the victim itself does get it
		for i in \$(seq 50); do
			setpriv --reuid=$victim --regid=$victim --clear-groups "$AGENT" api fetch x509 -socketPath "$W/public/agent.sock" >"$W/got" 2>&1 && break
			sleep 0.1
		done
		"$TOOLS/reuse" "$W/public/agent.sock" $victim $attacker 200 >"$W/reused" 2>&1
		echo \$? >"$W/status"
		kill -9 \$a
	EOF
	unshare --pid --fork --mount-proc --kill-child bash "$W/inside" &
	pids+=($!)
	wait $!
	grep -q "spiffe://$TD/victim" "$W/got" || die "the victim itself gets nothing: $(cat "$W/got")"
	cat "$W/reused"
	[ "$(cat "$W/status")" = 0 ]
}

# A process that ends right after it asked, thousands of times, beside one that goes on.
ending() {
	both || return 1
	entry web "unix:uid:$(id -u)" && fetch_ok || return 1
	local k fds after
	fds=$(find "/proc/$APID/fd" | wc -l)
	for k in $(seq 1 300); do
		"$AGENT" api fetch x509 -timeout 50ms -socketPath "$W/public/agent.sock" >/dev/null 2>&1 &
		[ $((k % 3)) = 0 ] && kill -9 $! 2>/dev/null
	done
	wait_others
	fetch || return 1
	sleep 1
	after=$(find "/proc/$APID/fd" | wc -l)
	[ "$after" -le $((fds + 8)) ] || die "descriptors grew from $fds to $after"
}

# Each user gets its own, at the same time.
own_identities() {
	[ "$(id -u)" = 0 ] || skip 'needs root to act as other users'
	both || return 1
	local u k
	for u in 61001 61002 61003; do
		entry "user$u" "unix:uid:$u" >/dev/null || return 1
	done
	until_ok 5 setpriv --reuid=61003 --regid=61003 --clear-groups "$AGENT" api fetch x509 -socketPath "$W/public/agent.sock" || return 1
	for u in 61001 61002 61003; do
		for k in 1 2 3 4 5 6 7 8 9 10; do
			setpriv --reuid=$u --regid=$u --clear-groups "$AGENT" api fetch x509 -socketPath "$W/public/agent.sock" >"$W/u$u-$k" 2>&1 &
		done
	done
	wait_others
	for u in 61001 61002 61003; do
		cat "$W/u$u-"* | grep -oE "spiffe://$TD/user[0-9]+" | sort | uniq -c >"$W/seen"
		[ "$(cat "$W/seen" | tr -s ' ')" = " 10 spiffe://$TD/user$u" ] || die "user $u saw $(cat "$W/seen")"
	done
}

t 'a pid taken over by another process gives nothing' pid_reuse
t 'callers that end while they are attested' ending
t 'ten callers of three users at once, each its own' own_identities
finish
