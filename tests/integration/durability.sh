#!/bin/bash
# Nothing acknowledged is lost, and nothing damaged is overwritten.
source "$(dirname "$0")/lib.sh"

# Writers register entries one by one and note each acknowledged id; the server is killed at random points meanwhile.
kill_random() {
	server_start || return 1
	: >"$W/acked"
	touch "$W/go"
	local k
	for k in 1 2 3 4; do
		(
			n=0
			while [ -f "$W/go" ]; do
				n=$((n + 1))
				id="w$k-$n"
				if s entry create -entryID "$id" -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/$k/$n" \
					-selector "unix:uid:$n" >/dev/null 2>&1; then
					echo "$id" >>"$W/acked"
				else
					sleep 0.05
				fi
			done
		) &
		pids+=($!)
	done
	local end=$((SECONDS + 120))
	while [ "$(wc -l <"$W/acked")" -lt 1000 ]; do
		[ "$SECONDS" -lt "$end" ] || die "too slow: $(wc -l <"$W/acked")"
		sleep "0.$((RANDOM % 9))$((RANDOM % 9))"
		kill -9 "$SPID"
		until_ok 5 gone "$SPID" || return 1
		server_start || return 1
	done
	rm "$W/go"
	sleep 0.5
	s entry show -output json | jq -r '.entries[].id' | sort >"$W/have"
	sort "$W/acked" >"$W/want"
	comm -13 "$W/have" "$W/want" >"$W/lost"
	[ ! -s "$W/lost" ] || die "lost: $(wc -l <"$W/lost") of $(wc -l <"$W/want"): $(head -n 3 "$W/lost")"
	echo "$(wc -l <"$W/want") acknowledged writes, none lost"
}

# One token, a hundred agents at once: one wins, the others are told that it does not exist.
token_once() {
	server_conf 'ratelimit { attestation = false }'
	server_start || return 1
	local tok k won=0 fate
	tok=$(s token generate | sed -n 's/^Token: //p')
	s bundle show >"$W/bundle.pem"
	for k in $(seq 1 100); do
		sed "s#@K@#$k#g" >"$W/agent$k.conf" <<-EOF
			agent {
				data_dir = "$W/a@K@"
				server_address = "127.0.0.1"
				server_port = $SPORT
				socket_path = "$W/p@K@/agent.sock"
				trust_domain = "$TD"
				trust_bundle_path = "$W/bundle.pem"
				join_token = "$tok"
			}
			plugins {
				KeyManager "memory" { plugin_data {} }
				NodeAttestor "join_token" { plugin_data {} }
				WorkloadAttestor "unix" { plugin_data {} }
			}
		EOF
		mkdir -p "$W/a$k"
		"$AGENT" run -config "$W/agent$k.conf" >"$W/a$k.log" 2>&1 &
		pids+=($!)
	done
	until_ok 60 sh -c "[ \$(cat $W/a*.log | grep -cE 'join token does not exist or has already been used') -ge 99 ]" || return 1
	won=$(s agent list | grep -c '^SPIFFE ID')
	[ "$won" = 1 ] || die "$won agents attested with one token"
}

disk_full() {
	[ "$(id -u)" = 0 ] || skip 'needs root to mount a small tmpfs'
	mkdir -p "$W/server"
	mount -t tmpfs -o size=2m tmpfs "$W/server" 2>/dev/null || skip 'no tmpfs can be mounted here'
	trap 'kill -9 $SPID 2>/dev/null; sleep 0.2; umount -l "$W/server"' EXIT
	server_start || return 1
	local k failed_at=0
	for k in $(seq 1 30); do
		if ! s entry create -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/$k" -selector "unix:uid:$k" >"$W/out$k" 2>&1; then
			failed_at=$k
			break
		fi
		[ "$k" = 5 ] && { dd if=/dev/zero of="$W/server/fill" bs=4k >/dev/null 2>&1 || true; }
	done
	[ "$failed_at" -gt 5 ] || [ "$failed_at" = 0 ] || die "failed before the disk was full: $(cat "$W/out$failed_at")"
	[ "$failed_at" != 0 ] || die 'writes went on with a full disk'
	s healthcheck x >/dev/null 2>&1
	"$SERVER" healthcheck -socketPath "$W/server.sock" || die 'the server died of a full disk'
	rm "$W/server/fill"
	until_ok 10 s entry create -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/again" -selector unix:uid:9 || return 1
	local have
	have=$(s entry count | grep -oE '[0-9]+' | head -n 1)
	[ "$have" = "$failed_at" ] || die "have $have entries, acknowledged $failed_at"
}

# damage FILE HOW: a clear error that names the file; the file is left as it was
damaged() {
	local file=$1 how=$2 sum
	server_start || return 1
	s entry create -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/x" -selector unix:uid:1 >/dev/null || return 1
	kill "$SPID"
	until_ok 10 gone "$SPID" || return 1
	rm -f "$W/server/"*-wal "$W/server/"*-shm
	case $how in
	truncated) truncate -s 100 "$file" ;;
	garbage) head -c 8192 /dev/urandom >"$file" ;;
	esac
	chmod 600 "$file"
	sum=$(sha256sum <"$file")
	timeout 10 "$SERVER" run -config "$W/server.conf" >"$W/again.log" 2>&1 && die 'it started'
	[ $? -ne 124 ] || die 'it did not end'
	grep -q "$(basename "$file")" "$W/again.log" || die "the error does not name the file: $(cat "$W/again.log")"
	[ "$sum" = "$(sha256sum <"$file")" ] || die 'the file was changed'
}

open_keys() {
	server_start || return 1
	kill "$SPID"
	until_ok 10 gone "$SPID" || return 1
	chmod 644 "$W/server/keys.json"
	timeout 10 "$SERVER" run -config "$W/server.conf" >"$W/again.log" 2>&1 && die 'it started with keys that all can read'
	grep -q 'keys.json' "$W/again.log" || die "$(cat "$W/again.log")"
}

two_servers() {
	server_start || return 1
	sed "s#bind_port = .*#bind_port = $(free_port)#; s#server.sock#other.sock#" "$W/server.conf" >"$W/two.conf"
	timeout 10 "$SERVER" run -config "$W/two.conf" >"$W/two.log" 2>&1 && die 'a second server on the same data'
	[ $? -ne 124 ] || die 'it did not end'
	grep -qiE 'lock|in use|another' "$W/two.log" || die "$(cat "$W/two.log")"
}

t 'kill -9 at random points, 1,000 acknowledged writes' kill_random
t 'a hundred agents, one join token: one attests' token_once
t 'disk full' disk_full
t 'truncated database' damaged "$W/server/datastore.sqlite3" truncated
t 'garbage database' damaged "$W/server/datastore.sqlite3" garbage
t 'truncated keys' damaged "$W/server/keys.json" truncated
t 'garbage keys' damaged "$W/server/keys.json" garbage
t 'keys that others can read' open_keys
t 'two servers on one data folder' two_servers
finish
