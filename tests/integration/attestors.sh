#!/bin/bash
# Node attestors that need more than a file: sshpop with certificates of ssh-keygen, http_challenge over HTTP.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

# ssh_ca: a CA in $W/ca
ssh_ca() { ssh-keygen -q -t ed25519 -N '' -C '' -f "$W/ca"; }

# ssh_host TYPE [FLAGS…]: a host's key and certificate in $W/host
ssh_host() {
	local type=$1
	shift
	rm -f "$W"/host*
	ssh-keygen -q -t "$type" -N '' -C '' -f "$W/host" &&
		ssh-keygen -q -s "$W/ca" -I host -h -n "node-1.$TD" "$@" "$W/host.pub"
}

ssh_server() {
	server_conf "" "NodeAttestor \"sshpop\" {
		plugin_data {
			cert_authorities_path = \"$W/ca.pub\"
			${1:-}
		}
	}"
	server_start
}

ssh_agent_conf() {
	agent_conf "" "NodeAttestor \"sshpop\" {
		plugin_data {
			host_key_path = \"$W/host\"
			host_cert_path = \"$W/host-cert.pub\"
		}
	}"
}

agents() { s agent list; }

# attests ID-PATTERN: the agent comes up, and the server lists it
attests() {
	agent_start || return 1
	agents | grep -Eq "$1" || { agents; return 1; }
}

# refused TEXT: the agent does not come up, and its log says why
refused() {
	mkdir -p "$W/agent"
	s bundle show >"$W/bundle.pem"
	"$AGENT" run -config "$W/agent.conf" >>"$W/agent.log" 2>&1 &
	local pid=$!
	pids+=("$pid")
	until_ok 10 grep -q "$1" "$W/agent.log" || return 1
	kill -9 "$pid" 2>/dev/null
	agents | grep -q "^No attested agents" || { agents; return 1; }
}

ssh_type() {
	ssh_ca && ssh_host "$1" && ssh_server || return 1
	ssh_agent_conf
	attests "spiffe://$TD/spire/agent/sshpop/[A-Za-z0-9_-]{43}$"
}

# The id is the certificate's fingerprint; a new attestation is welcome.
ssh_again() {
	ssh_type ed25519 || return 1
	local want
	want=$(awk '{print $2}' "$W/host-cert.pub" | base64 -d | openssl dgst -sha256 -binary | base64 | tr '+/' '-_' | tr -d =)
	agents | grep -q "sshpop/$want\$" || die "the id is not the fingerprint $want"
	kill -9 "$APID"
	rm -rf "$W/agent" "$W/public" "$W/private"
	agent_start || return 1
	[ "$(agents | grep -c 'SPIFFE ID')" = 1 ]
}

ssh_template() {
	ssh_ca && ssh_host ed25519 || return 1
	ssh_server "canonical_domain = \"$TD\"
		agent_path_template = \"/{{ .PluginName }}/{{ .Hostname }}/{{ index .ValidPrincipals 0 }}\"" || return 1
	ssh_agent_conf
	attests "spiffe://$TD/spire/agent/sshpop/node-1/node-1.$TD\$"
}

ssh_other_ca() {
	ssh_ca && ssh_host ed25519 || return 1
	rm "$W"/ca*
	ssh_ca && ssh_server || return 1
	ssh_agent_conf
	refused "no authorities for hostname: node-1.$TD"
}

ssh_expired() {
	ssh_ca && ssh_host ed25519 -V 20200101:20200102 && ssh_server || return 1
	ssh_agent_conf
	refused "cert has expired"
}

ssh_other_key() {
	ssh_ca && ssh_host ed25519 && ssh_server || return 1
	ssh-keygen -q -t ed25519 -N '' -C '' -f "$W/other"
	mv "$W/other" "$W/host"
	ssh_agent_conf
	refused "failed to verify signature"
}

# http_server [LINES] : allows 127.0.0.1, and this host's own name
http_server() {
	server_conf "" "NodeAttestor \"http_challenge\" {
		plugin_data {
			${1-allowed_dns_patterns = [\"^127\\\\.0\\\\.0\\\\.1\$\"]}
		}
	}"
	server_start
}

http_agent_conf() {
	agent_conf "" "NodeAttestor \"http_challenge\" {
		plugin_data {
			${1:-hostname = \"127.0.0.1\"}
		}
	}"
}

http_good() {
	http_server || return 1
	http_agent_conf
	attests "spiffe://$TD/spire/agent/http_challenge/127.0.0.1\$"
	s agent show -spiffeID "spiffe://$TD/spire/agent/http_challenge/127.0.0.1" | grep -q 'http_challenge:hostname:127.0.0.1'
}

# Whoever comes second is refused, until the operator forgets the first.
http_tofu() {
	http_good || return 1
	kill -9 "$APID"
	rm -rf "$W/agent" "$W/public" "$W/private"
	mkdir -p "$W/agent"
	"$AGENT" run -config "$W/agent.conf" >"$W/second.log" 2>&1 &
	pids+=("$!")
	until_ok 10 grep -q "already been used to attest an agent" "$W/second.log" || return 1
	kill -9 "$!" 2>/dev/null
	s agent evict -spiffeID "spiffe://$TD/spire/agent/http_challenge/127.0.0.1" || return 1
	agent_start
}

http_no_tofu() {
	server_conf "" "NodeAttestor \"http_challenge\" {
		plugin_data {
			tofu = false
		}
	}"
	"$SERVER" validate -config "$W/server.conf" >"$W/validate" 2>&1 && return 1
	grep -q "can not turn off trust on first use" "$W/validate"
}

http_policy() {
	http_server "allowed_dns_patterns = [\"^p[0-9]\\\\.example\\\\.com\$\"]" || return 1
	http_agent_conf
	refused "the requested hostname is not allowed to connect"
}

http_loopback() {
	http_server "" || return 1
	http_agent_conf
	refused "the challenge could not be fetched"
}

http_localhost() {
	http_server "" || return 1
	http_agent_conf 'hostname = "localhost"'
	refused "you can not use localhost as a hostname"
}

http_port() {
	http_server "required_port = 80" || return 1
	http_agent_conf
	refused "is not allowed to be used by this server"
}

# Somebody else listens where the agent says that it does.
http_stranger() {
	local port
	port=$(free_port)
	http_server || return 1
	(cd / && exec python3 -m http.server --bind 127.0.0.1 "$port") >/dev/null 2>&1 &
	pids+=("$!")
	until_ok 5 curl -s "http://127.0.0.1:$port/" || return 1
	http_agent_conf "hostname = \"127.0.0.1\"
		advertised_port = $port"
	refused "challenge verification failed"
}

for type in ed25519 ecdsa rsa; do
	t "sshpop: a host key of type $type" ssh_type "$type"
done
t "sshpop: the same certificate again" ssh_again
t "sshpop: canonical domain and path template" ssh_template
t "sshpop: a certificate of an unknown CA" ssh_other_ca
t "sshpop: an expired certificate" ssh_expired
t "sshpop: another key than the certificate's" ssh_other_key
t "http_challenge: attests" http_good
t "http_challenge: only the first time" http_tofu
t "http_challenge: tofu = false needs privileged ports" http_no_tofu
t "http_challenge: a host name that is not allowed" http_policy
t "http_challenge: an address of the server's own" http_loopback
t "http_challenge: localhost" http_localhost
t "http_challenge: a port that is not allowed" http_port
t "http_challenge: another server at the port" http_stranger
finish
