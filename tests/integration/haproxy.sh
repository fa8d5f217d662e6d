#!/bin/bash
# A real HAProxy as a gateway, as docs/PROXIES.md has it: mutual TLS on both sides, SPIFFE IDs checked, through rotations.
source "$(dirname "$0")/lib.sh"
. tests/integration/recipes.inc

gateway() {
	need HAProxy haproxy
	[ "$(id -u)" = 0 ] || skip 'not root: clients of two users are needed'
	local port app
	port=$(free_port) app=$(free_port)
	world || return 1
	entry gateway "$me" >/dev/null
	entry client unix:uid:61001 >/dev/null
	entry app unix:uid:61002 -- -dns app.example.org >/dev/null
	entry impostor unix:uid:61003 -- -dns app.example.org >/dev/null && fetch_ok >/dev/null || return 1
	PLACES="s|/run/haproxy.pid|$W/haproxy.pid|; s|/etc/haproxy/|$W/|g; s|bind :8443|bind 127.0.0.1:$port|; s|:8080|:$app|"
	recipe 'haproxy files' >"$W/files-haproxy.conf"
	recipe 'haproxy conf' >"$W/haproxy.cfg"
	recipe 'haproxy lua' >"$W/spiffe.lua"
	mkdir "$W/files/haproxy"
	files_start "$W/files-haproxy.conf" || return 1
	client_files 61001 client && client_files 61002 app && client_files 61003 impostor || return 1
	python3 tests/integration/tls-app.py "$app" "$W/files/app" "spiffe://$TD/gateway" >"$W/app.log" 2>&1 &
	local server=$!
	pids+=("$server")
	haproxy -W -db -p "$W/haproxy.pid" -f "$W/haproxy.cfg" >"$W/haproxy.log" 2>&1 &
	gently "$!"
	local proxy=$!
	until_ok 10 test -s "$W/haproxy.pid" || { cat "$W/haproxy.log"; return 1; }
	until_ok 10 eval "[ \"\$(curl_as client https://127.0.0.1:$port/)\" = 200 ]" || return 1
	python3 tests/integration/tls-load.py "$port" "$W/stop" "$W/files/client" "spiffe://$TD/gateway" "client=spiffe://$TD/client" >"$W/load" 2>&1 &
	pids+=("$!")
	through_rotations "$W/files-haproxy.conf" "$!" gateway "$me" || return 1
	! gone "$proxy" || return 1
	# Who must stay outside.
	[ "$(curl_as impostor "https://127.0.0.1:$port/")" = 403 ] || die 'another SPIFFE ID gets in'
	[ "$(curl -sk -o "$W/body" -w '%{http_code}' "https://127.0.0.1:$port/")" = 000 ] || die 'without a certificate one gets in'
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$W/self.key" -out "$W/self.pem" -subj /O=SPIRE \
		-addext "subjectAltName=URI:spiffe://$TD/client" 2>/dev/null
	[ "$(curl -sk -o "$W/body" -w '%{http_code}' --cert "$W/self.pem" --key "$W/self.key" "https://127.0.0.1:$port/")" = 000 ] || die 'a forged certificate gets in'
	# A server with the right DNS name and another SPIFFE ID says nothing to clients.
	kill -9 "$server" && wait "$server" 2>/dev/null
	python3 tests/integration/tls-app.py "$app" "$W/files/impostor" "spiffe://$TD/gateway" >"$W/app.log" 2>&1 &
	pids+=("$!")
	until_ok 5 eval "! [ \"\$(curl_as client https://127.0.0.1:$port/)\" = 503 ]"
	[ "$(curl_as client "https://127.0.0.1:$port/")" = 502 ] || die 'an impostor is passed on'
	! grep -q client= "$W/body"
}

# The script of the recipe, by certificates that are not what it hopes for. There is no server behind: 503 is what gets in.
names() {
	need HAProxy haproxy
	local port
	port=$(free_port)
	odd_certs "$W/odd" || return 1
	PLACES="s|/run/haproxy.pid|$W/haproxy.pid|; s|/etc/haproxy/|$W/|g; s|bind :8443|bind 127.0.0.1:$port|; s|:8080|:1|
		s|$W/files/haproxy|$W/odd|g; /^\tuser /d; /^\tgroup /d"
	recipe 'haproxy conf' >"$W/haproxy.cfg"
	recipe 'haproxy lua' >"$W/spiffe.lua"
	haproxy -W -db -p "$W/haproxy.pid" -f "$W/haproxy.cfg" >"$W/haproxy.log" 2>&1 &
	gently "$!"
	until_ok 10 eval "[ \"\$(curl -sk -o /dev/null -w '%{http_code}' --cert $W/odd/dns.pem --key $W/odd/svid.key https://127.0.0.1:$port/)\" = 403 ]" ||
		{ cat "$W/haproxy.log"; return 1; }
	odd_answers "$W/odd" "https://127.0.0.1:$port/" >"$W/answers"
	diff <(echo "${ODD_ANSWERS//200/503}") "$W/answers"
}

t 'HAProxy takes the SPIFFE ID of a certificate, and nothing else' names
t 'HAProxy, mutual TLS on both sides, through 20 rotations, no request fails' gateway
finish
