#!/bin/bash
# A real PostgreSQL that takes clients by their SPIFFE ID, as docs/PROXIES.md has it, through rotations.
source "$(dirname "$0")/lib.sh"
. tests/integration/recipes.inc

as() { # USER-ID COMMAND…
	setpriv --reuid "$1" --regid "$1" --clear-groups env -i PATH="$PATH" "${@:2}"
}

# One connection after the other, until the file is there.
connections() {
	local good=0 bad=0 out
	while [ ! -e "$W/stop" ]; do
		if out=$(as 61001 sh "$W/client.sh" -Atc 'SELECT current_user' 2>&1) && [ "$out" = orders ]; then
			good=$((good + 1))
		else
			bad=$((bad + 1))
			echo "$out" >>"$W/bad"
		fi
	done
	echo "$good $bad" >"$W/count.$1"
}

# One session all the time.
session() {
	while [ ! -e "$W/stop" ]; do
		echo 'SELECT 1;'
		sleep 0.1
	done | as 61001 sh "$W/client.sh" -At -v ON_ERROR_STOP=1 >"$W/session"
}

load() {
	local i jobs=()
	for i in 1 2 3; do
		connections "$i" &
		jobs+=("$!")
	done
	session || { touch "$W/stop"; echo 'the session has ended'; return 1; }
	wait "${jobs[@]}"
	cat "$W"/count.* | awk -v in_session="$(wc -l <"$W/session")" '{ good += $1; bad += $2 }
		END { printf "%d connections and %d requests in one session, %d failed\n", good, in_session, bad; exit bad || good < 50 || in_session < 50 }' ||
		{ head -n 3 "$W/bad"; return 1; }
}

database() {
	local bin p port uid
	for p in /usr/lib/postgresql/*/bin; do bin=$p; done
	[ -x "$bin/initdb" ] || { need PostgreSQL pg_ctlcluster; for p in /usr/lib/postgresql/*/bin; do bin=$p; done; }
	[ -x "$bin/initdb" ] || skip 'PostgreSQL is not installed'
	[ "$(id -u)" = 0 ] || skip 'not root: clients of two users are needed'
	uid=$(id -u postgres) port=$(free_port)
	PLACES="s|/run/postgresql/15-main.pid|$W/pg/external.pid|"
	world "$(recipe 'postgres composer')" || return 1
	entry db "unix:uid:$uid" -- -dns db.example.org >/dev/null
	entry orders unix:uid:61001 >/dev/null
	entry stranger unix:uid:61002 -- -dns orders >/dev/null || return 1

	mkdir "$W/files/postgres" "$W/pg" && chown postgres: "$W/files/postgres" "$W/pg"
	recipe 'postgres files' >"$W/files-postgres.conf"
	files_start "$W/files-postgres.conf" "$uid" || return 1
	as "$uid" "$bin/initdb" -N -D "$W/pg/data" >"$W/initdb.log" 2>&1 || { cat "$W/initdb.log"; return 1; }
	recipe 'postgres conf' >>"$W/pg/data/postgresql.conf"
	recipe 'postgres hba' >"$W/pg/data/pg_hba.conf"
	recipe 'postgres ident' >"$W/pg/data/pg_ident.conf"
	# not by as(), whose pid would be a shell's
	setpriv --reuid "$uid" --regid "$uid" --clear-groups env -i PATH="$PATH" "$bin/postgres" -D "$W/pg/data" -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories="$W/pg" >"$W/postgres.log" 2>&1 &
	gently "$!"
	until_ok 15 as "$uid" "$bin/psql" -h "$W/pg" -p "$port" -c 'SELECT 1' || { cat "$W/postgres.log"; return 1; }
	as "$uid" "$bin/psql" -h "$W/pg" -p "$port" -qc 'CREATE ROLE orders LOGIN' -c 'CREATE ROLE other LOGIN' -c 'CREATE DATABASE shop' || return 1
	as "$uid" "$bin/psql" -h "$W/pg" -p "$port" -d shop -qc 'CREATE EXTENSION sslinfo' || return 1

	client_files 61001 orders && client_files 61002 stranger || return 1
	PLACES="s|psql|$bin/psql|; s|port=5432|port=$port hostaddr=127.0.0.1|"
	recipe 'postgres client' >"$W/client.sh"
	sed 's|files/orders|files/stranger|' "$W/client.sh" >"$W/stranger.sh"
	load >"$W/load" 2>&1 &
	pids+=("$!")
	through_rotations "$W/files-postgres.conf" "$!" db "unix:uid:$uid" -dns db.example.org || return 1

	# The SPIFFE ID in SQL.
	[ "$(as 61001 sh "$W/client.sh" -Atc "SELECT value FROM ssl_extension_info() WHERE name = 'subjectAltName'")" = "URI:spiffe://$TD/orders" ] || die 'sslinfo says something else'
	# Who must stay outside: another SPIFFE ID, the right one as another role, no certificate, no TLS.
	as 61002 sh "$W/stranger.sh" -c 'SELECT 1' >"$W/o" 2>&1 && die 'another SPIFFE ID gets in'
	grep -q 'certificate authentication failed' "$W/o" || die "$(cat "$W/o")"
	sed 's|user=orders|user=other|' "$W/client.sh" >"$W/other.sh"
	as 61001 sh "$W/other.sh" -c 'SELECT 1' >"$W/o" 2>&1 && die 'another role'
	grep -q 'certificate authentication failed' "$W/o" || die "$(cat "$W/o")"
	as 61001 "$bin/psql" "host=127.0.0.1 port=$port dbname=shop user=orders sslmode=require" -c 'SELECT 1' >"$W/o" 2>&1 && die 'without a certificate one gets in'
	grep -q 'requires a valid client certificate' "$W/o" || die "$(cat "$W/o")"
	as 61001 "$bin/psql" "host=127.0.0.1 port=$port dbname=shop user=orders sslmode=disable" -c 'SELECT 1' >"$W/o" 2>&1 && die 'without TLS one gets in'
	grep -q 'no pg_hba.conf entry' "$W/o" || die "$(cat "$W/o")"
}

t 'PostgreSQL, clients by SPIFFE ID, through 20 rotations, no connection fails' database
finish
