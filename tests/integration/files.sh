#!/bin/bash
# `assay-agent files`: identities in files for programs that read files, by spiffe-helper's configuration keys.
source "$(dirname "$0")/lib.sh"
me=unix:uid:$(id -u)

# A pair that loads is one that belongs together: OpenSSL refuses a key of another certificate.
cat_pair() {
	python3 - "$@" <<-'EOF'
		import os, ssl, sys, time
		d, cert, key, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
		end, n, seen = time.monotonic() + seconds, 0, set()
		while True:
		    # ..data is looked up once: the set before stays until this is read.
		    now = os.path.realpath(os.path.join(d, "..data"))
		    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(os.path.join(now, cert), os.path.join(now, key))
		    n += 1
		    seen.add(now)
		    if time.monotonic() >= end:
		        break
		print(n, len(seen))
	EOF
}

world() { # TTL
	server_conf "ca_ttl = \"24h\"
		agent_ttl = \"1h\"
		default_x509_svid_ttl = \"$1\"
		default_jwt_svid_ttl = \"1m\""
	both || return 1
	entry web "$me" -- -dns web.example.org >/dev/null
	entry two "$me" -- -hint second >/dev/null && fetch_ok >/dev/null
}

# conf [LINES]: spiffe-helper's keys, for $W/certs
conf() {
	cat >"$W/helper.conf" <<-EOF
		agent_address = "$W/public/agent.sock"
		cert_dir = "$W/certs"
		svid_file_name = "svid.pem"
		svid_key_file_name = "svid_key.pem"
		svid_bundle_file_name = "svid_bundle.pem"
		${1:-}
	EOF
}

files() {
	"$AGENT" files -config "$W/helper.conf" >>"$W/files.log" 2>&1 &
	FPID=$!
	pids+=("$FPID")
}

sets() { find "$W/certs" -maxdepth 1 -type d -name '..data.*' | wc -l; }
id_of() { openssl x509 -in "$1" -noout -ext subjectAltName | grep -o 'spiffe://.*'; }
serial() { openssl x509 -in "$W/certs/svid.pem" -noout -serial; }
http() { curl -s -o "$W/body" -w '%{http_code}' "http://127.0.0.1:$PORT$1"; }
is() { [ "$(eval "$1")" = "$2" ]; }

keys_of_the_helper() {
	world 1h || return 1
	PORT=$(free_port)
	conf "cmd = \"/bin/sh\"
		cmd_args = \"-c \\\"echo started >>$W/cmd; trap 'echo hup >>$W/cmd' HUP; while [ -e $W/cmd ]; do sleep 0.1; done\\\"\"
		renew_signal = \"SIGHUP\"
		jwt_svids = [{jwt_audience=\"one\", jwt_extra_audiences=[\"two\", \"three\"], jwt_svid_file_name=\"jwt_svid.token\"}]
		jwt_bundle_file_name = \"jwt_bundle.json\"
		cert_file_mode = 0444
		key_file_mode = 0640
		jwt_bundle_file_mode = 0604
		jwt_svid_file_mode = 0400
		hint = \"second\"
		health_checks {
			listener_enabled = true
			bind_port = $PORT
			liveness_path = \"/livez\"
		}"
	"$AGENT" files validate -config "$W/helper.conf" || return 1
	files
	until_ok 10 is "http /ready" 200 || return 1
	grep -q '"status":"OK".*"x509_write_status":"written"' "$W/body" || die "$(cat "$W/body")"
	is "http /livez" 200 && is "http /live" 404 || return 1
	[ "$(id_of "$W/certs/svid.pem")" = "spiffe://$TD/two" ] || die 'the wrong identity'
	openssl verify -CAfile "$W/certs/svid_bundle.pem" "$W/certs/svid.pem" || return 1
	[ "$(cd "$W/certs" && stat -L -c %a svid.pem svid_key.pem svid_bundle.pem jwt_bundle.json jwt_svid.token | tr '\n' ' ')" = '444 640 444 604 400 ' ] ||
		die "$(ls -lL "$W/certs")"
	cut -d. -f2 "$W/certs/jwt_svid.token" | tr '_-' '/+' | base64 -di 2>/dev/null | grep -q '"aud":\["one","two","three"\]' || return 1
	jq -r ".\"$TD\"" "$W/certs/jwt_bundle.json" | base64 -d | jq -e '.keys[0].kid' || return 1
	until_ok 5 is "cat $W/cmd" started || return 1
	# A new certificate: the program that runs is signalled, not started a second time.
	local was
	was=$(serial)
	s entry update -entryID "$(s entry show -spiffeID "spiffe://$TD/two" | awk '/Entry ID/ {print $4}')" -parentID "spiffe://$TD/node" \
		-spiffeID "spiffe://$TD/two" -selector "$me" -hint second -x509SVIDTTL 1800 >/dev/null || return 1
	until_ok 10 grep -q hup "$W/cmd" || return 1
	[ "$was" != "$(serial)" ] && [ "$(grep -c started "$W/cmd")" = 1 ] || return 1
	kill "$FPID" && until_ok 5 gone "$FPID" && wait "$FPID"
}

# To systemd it is ready when all files are there, and not before.
ready() {
	world 1h || return 1
	s entry delete -entryID "$(s entry show -spiffeID "spiffe://$TD/two" | awk '/Entry ID/ {print $4}')" >/dev/null
	conf 'hint = "second"'
	python3 -c 'import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print(s.recv(100).decode(), flush=True)' "$W/notify" >"$W/said" &
	pids+=("$!")
	until_ok 5 test -S "$W/notify" || return 1
	NOTIFY_SOCKET=$W/notify files
	until_ok 5 grep -q 'failed to find the hinted' "$W/files.log" && [ ! -s "$W/said" ] || return 1
	entry two "$me" -- -hint second >/dev/null
	until_ok 10 grep -qx READY=1 "$W/said" && test -s "$W/certs/svid.pem"
}

together() {
	world 4s || return 1
	conf 'cmd = "/bin/true"'
	# As spiffe-helper would have left it: plain files, which are taken over.
	mkdir "$W/certs" && touch "$W/certs/svid.pem" && echo mine >"$W/certs/other"
	files
	until_ok 10 test -L "$W/certs/svid_key.pem" || return 1
	local seen
	seen=$(cat_pair "$W/certs" svid.pem svid_key.pem 13) || return 1
	echo "reads and sets: $seen"
	[ "${seen#* }" -ge 5 ] && [ "$(cat "$W/certs/other")" = mine ] && [ "$(sets)" -le 16 ] || return 1
	kill "$FPID" && until_ok 5 gone "$FPID" && [ "$(sets)" = 1 ]
}

sets_and_signals() {
	world 4s || return 1
	cat >"$W/helper.conf" <<-EOF
		agent_address = "unix://$W/public/agent.sock"
		cert_dir = "$W/certs"
		identity "web" {
			spiffe_id = "spiffe://$TD/web"
			svid_combined_file_name = "web.pem"
			owner = "1234"
			group = "5678"
			pid_file_name = "$W/pid"
			renew_signal = "USR1"
		}
		identity "two" {
			hint = "second"
			svid_file_name = "two.pem"
			svid_key_file_name = "two.key"
			svid_bundle_file_name = "ca.pem"
		}
	EOF
	sh -c "trap 'echo usr1 >>$W/signals' USR1; while :; do sleep 0.05; done" &
	pids+=("$!")
	sleep 0.2
	files
	until_ok 10 test -s "$W/certs/web.pem" -a -s "$W/certs/two.pem" || return 1
	sleep 0.5
	echo "${pids[-2]}" >"$W/pid" # after the first attempt, which is made again
	until_ok 10 test -s "$W/signals" || return 1
	[ "$(id_of "$W/certs/web.pem")" = "spiffe://$TD/web" ] && [ "$(id_of "$W/certs/two.pem")" = "spiffe://$TD/two" ] || return 1
	openssl x509 -in "$W/certs/web.pem" -noout -pubkey >"$W/a" && openssl pkey -in "$W/certs/web.pem" -pubout >"$W/b" && cmp "$W/a" "$W/b" || return 1
	[ "$(id -u)" != 0 ] || [ "$(stat -L -c '%u:%g:%a' "$W/certs/web.pem")" = 1234:5678:600 ] || return 1
	# A second one on the same set is refused, and says why.
	"$AGENT" files -config "$W/helper.conf" >"$W/second" 2>&1 && return 1
	grep -q 'another process keeps files' "$W/second"
}

killed() {
	world 1h || return 1
	conf
	local i
	for ((i = 0; i < 30; i++)); do
		# Another mode, so that each start has something to write.
		conf "cert_file_mode = 06$((i % 2 ? 4 : 0))0"
		files
		[ "$i" = 0 ] && { until_ok 10 test -s "$W/certs/svid.pem" || return 1; }
		sleep "0.0$((RANDOM % 80 + 10))"
		kill -9 "$FPID" && wait "$FPID" 2>/dev/null
		cat_pair "$W/certs" svid.pem svid_key.pem 0 >/dev/null || die "after kill $i"
		openssl verify -CAfile "$W/certs/svid_bundle.pem" "$W/certs/svid.pem" >/dev/null || die "after kill $i"
	done
	files
	until_ok 10 is sets 1 || die "$(ls -la "$W/certs")"
	[ ! -e "$W/certs/..data.new" ]
}

no_space() {
	world 4s || return 1
	[ "$(id -u)" = 0 ] || skip 'not root: no file system of its own'
	mkdir "$W/certs"
	mount -t tmpfs -o size=128k tmpfs "$W/certs" 2>/dev/null || skip 'no file system can be mounted here'
	PORT=$(free_port)
	conf "health_checks { listener_enabled = true bind_port = $PORT }"
	files
	until_ok 10 is "http /live" 200 && until_ok 5 is "http /ready" 200 || { umount "$W/certs"; return 1; }
	dd if=/dev/zero of="$W/certs/fill" bs=4k 2>/dev/null
	local was ok=0
	was=$(serial)
	until_ok 10 is "http /live" 503 && [ "$(serial)" = "$was" ] && cat_pair "$W/certs" svid.pem svid_key.pem 0 &&
		rm "$W/certs/fill" && until_ok 15 is "http /ready" 200 && [ "$(serial)" != "$was" ] || ok=1
	kill "$FPID"
	until_ok 5 gone "$FPID"
	umount "$W/certs"
	return "$ok"
}

agent_restarts() {
	world 5s || return 1
	conf
	files
	until_ok 10 test -s "$W/certs/svid.pem" || return 1
	kill -9 "$APID"
	wait "$APID" 2>/dev/null
	cat_pair "$W/certs" svid.pem svid_key.pem 0 || return 1
	until_ok 10 grep -q 'has expired; the agent gives no other' "$W/files.log" || return 1
	local was
	was=$(serial)
	agent_start || return 1
	until_ok 15 eval '[ "$(serial)" != "'"$was"'" ]' && ! gone "$FPID"
}

once() {
	world 1h || return 1
	conf
	"$AGENT" files -config "$W/helper.conf" -daemon-mode=false || return 1
	cat_pair "$W/certs" svid.pem svid_key.pem 0 || return 1
	# The exit status of each failure is 1.
	conf 'hint = "nobody"'
	"$AGENT" files -config "$W/helper.conf" -daemon-mode=false >"$W/o" 2>&1
	[ $? = 1 ] && grep -q 'failed to find the hinted x509 SVID' "$W/o" || return 1
	conf 'pid_file_name = "/x"'
	"$AGENT" files -config "$W/helper.conf" >"$W/o" 2>&1
	[ $? = 1 ] && grep -q "helper.conf:6: must specify renew_signal when using pid_file_name" "$W/o" || return 1
	sed -i "s|public/agent.sock|nowhere.sock|; /pid_file/d" "$W/helper.conf"
	"$AGENT" files -config "$W/helper.conf" -daemon-mode=false >"$W/o" 2>&1
	[ $? = 1 ] && grep -q 'Error while watching' "$W/o" || return 1
	# An identity that comes later is waited for.
	s entry delete -entryID "$(s entry show -spiffeID "spiffe://$TD/two" | awk '/Entry ID/ {print $4}')" >/dev/null
	s entry delete -entryID "$(s entry show -spiffeID "spiffe://$TD/web" | awk '/Entry ID/ {print $4}')" >/dev/null
	until_ok 10 eval '! fetch' || return 1
	rm -rf "$W/certs"
	conf
	(sleep 1 && entry late "$me" >/dev/null) &
	"$AGENT" files -config "$W/helper.conf" -daemon-mode=false || return 1
	[ "$(id_of "$W/certs/svid.pem")" = "spiffe://$TD/late" ]
}

t 'the keys of spiffe-helper: files, modes, hint, program, health' keys_of_the_helper
t 'ready, to systemd' ready
t 'key and certificate change together under a reader' together
t 'several sets, one file for both, owner, signal by a pid file' sets_and_signals
t 'killed in the middle: never half a set, nothing left over' killed
t 'disk full: the old set stays whole' no_space
t 'the agent restarts' agent_restarts
t 'once, and its exit codes' once
finish
