#!/bin/bash
# A real nginx as a gateway, as docs/PROXIES.md has it: mutual TLS, the client's SPIFFE ID passed on, through rotations.
source "$(dirname "$0")/lib.sh"
. tests/integration/recipes.inc

gateway() {
	need 'nginx with njs' nginx
	[ "$(id -u)" = 0 ] || skip 'not root: clients of two users are needed'
	[ -e /usr/lib/nginx/modules/ngx_http_js_module.so ] || skip 'libnginx-mod-http-js is not installed'
	local port app
	port=$(free_port) app=$(free_port)
	world || return 1
	entry gateway "$me" >/dev/null
	entry client unix:uid:61001 >/dev/null
	entry stranger unix:uid:61002 >/dev/null && fetch_ok >/dev/null || return 1
	PLACES="s|/run/nginx.pid|$W/nginx.pid|; s|/var/log/nginx/|$W/|; s|/etc/nginx|$W|; s|listen 8443|listen 127.0.0.1:$port|; s|:8080|:$app|
		s|modules/ngx|/usr/lib/nginx/modules/ngx|"
	recipe 'nginx files' >"$W/files-nginx.conf"
	recipe 'nginx conf' >"$W/nginx.conf"
	recipe 'nginx js' >"$W/spiffe.js"
	mkdir "$W/files/nginx"
	files_start "$W/files-nginx.conf" || return 1
	client_files 61001 client && client_files 61002 stranger || return 1
	upstream "$app"
	nginx -p "$W" -c "$W/nginx.conf" -e "$W/error.log" -g 'daemon off;' >"$W/nginx.log" 2>&1 &
	gently "$!"
	until_ok 10 test -s "$W/nginx.pid" || { cat "$W/nginx.log"; return 1; }
	sleep 1 # the first signal may have come before there was a process
	python3 tests/integration/tls-load.py "$port" "$W/stop" "$W/files/client" "spiffe://$TD/gateway" "client=spiffe://$TD/client" >"$W/load" 2>&1 &
	pids+=("$!")
	through_rotations "$W/files-nginx.conf" "$!" gateway "$me" || return 1
	# Who must stay outside.
	[ "$(curl_as client "https://127.0.0.1:$port/")" = 200 ] && grep -q "client=spiffe://$TD/client\$" "$W/body" || die 'the client is refused'
	[ "$(curl_as stranger "https://127.0.0.1:$port/")" = 403 ] || die 'another SPIFFE ID gets in'
	[ "$(curl -sk -o "$W/body" -w '%{http_code}' "https://127.0.0.1:$port/")" = 400 ] || die 'without a certificate one gets in'
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$W/self.key" -out "$W/self.pem" -subj /O=SPIRE \
		-addext "subjectAltName=URI:spiffe://$TD/client" 2>/dev/null
	[ "$(curl -sk -o "$W/body" -w '%{http_code}' --cert "$W/self.pem" --key "$W/self.key" "https://127.0.0.1:$port/")" = 400 ] || die 'a forged certificate gets in'
	! grep -E 'emerg|alert|js exception' "$W/error.log"
}

# The script of the recipe, by certificates that are not what it hopes for.
names() {
	need 'nginx with njs' nginx
	[ -e /usr/lib/nginx/modules/ngx_http_js_module.so ] || skip 'libnginx-mod-http-js is not installed'
	local port app
	port=$(free_port) app=$(free_port)
	odd_certs "$W/odd" || return 1
	PLACES="s|/run/nginx.pid|$W/nginx.pid|; s|/var/log/nginx/|$W/|; s|/etc/nginx|$W|; s|listen 8443|listen 127.0.0.1:$port|; s|:8080|:$app|
		s|modules/ngx|/usr/lib/nginx/modules/ngx|; s|$W/files/nginx|$W/odd|; s|^user .*||"
	recipe 'nginx conf' >"$W/nginx.conf"
	recipe 'nginx js' >"$W/spiffe.js"
	upstream "$app"
	nginx -p "$W" -c "$W/nginx.conf" -e "$W/error.log" -g 'daemon off;' >"$W/nginx.log" 2>&1 &
	gently "$!"
	until_ok 10 curl -sk -o /dev/null "https://127.0.0.1:$port/" || { cat "$W/nginx.log"; return 1; }
	odd_answers "$W/odd" "https://127.0.0.1:$port/" >"$W/answers"
	diff <(echo "$ODD_ANSWERS") "$W/answers"
}

t 'nginx takes the SPIFFE ID of a certificate, and nothing else' names
t 'nginx as a gateway through 20 rotations, no request fails' gateway
finish
