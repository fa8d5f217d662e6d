# What the integration scripts share. A script sources this, calls `t NAME function` for each of its tests and ends with `finish`.
# shellcheck shell=bash
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
O=${O:-build/release}
O=$(cd "$O" && pwd)
SERVER=$O/assay-server
AGENT=$O/assay-agent
TOOLS=$O/tests/tools
TD=example.org
W=$(mktemp -d "${TMPDIR:-/tmp}/assay-int-XXXXXX")
chmod 755 "$W"
passed=0 failed=0 skipped=0
pids=()

cleanup() {
	local p
	for p in "${pids[@]}"; do
		kill -9 "$p" 2>/dev/null
	done
	wait 2>/dev/null
	rm -rf "$W" "$W.kube"
}
trap cleanup EXIT

finish() {
	echo "$passed passed, $failed failed, $skipped skipped"
	[ "$failed" -eq 0 ]
	exit
}

# t NAME COMMAND…: one test in a subshell of its own; status 77 skips, with the reason as its last line. Processes started inside end with it.
t() {
	local name=$1 status
	shift
	(
		pids=()
		trap 'for p in "${pids[@]}"; do kill -9 "$p" 2>/dev/null; done; wait 2>/dev/null' EXIT
		"$@"
	) >"$W/out" 2>&1
	status=$?
	case $status in
	0)
		passed=$((passed + 1))
		echo "ok: $name"
		;;
	77)
		skipped=$((skipped + 1))
		echo "SKIPPED: $name: $(tail -n 1 "$W/out")"
		;;
	*)
		failed=$((failed + 1))
		echo "FAILED: $name (status $status)"
		tail -n 30 "$W/out" | sed 's/^/    /'
		local f
		for f in "$W"/*.log; do
			[ -s "$f" ] || continue
			echo "    -- $(basename "$f")"
			tail -n 15 "$f" | sed 's/^/    /'
		done
		;;
	esac
	rm -rf "${W:?}"/*
}

skip() {
	echo "$*"
	exit 77
}

die() {
	echo "$*"
	exit 1
}

free_port() {
	python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# until_ok SECONDS COMMAND…: tries every 50 ms
until_ok() {
	local end=$((${EPOCHREALTIME/./} + $1 * 1000000))
	shift
	while [ "${EPOCHREALTIME/./}" -lt "$end" ]; do
		"$@" >/dev/null 2>&1 && return 0
		sleep 0.05
	done
	echo "not within the time: $*"
	return 1
}

gone() { ! kill -0 "$1" 2>/dev/null || [ "$(awk '{print $3}' "/proc/$1/stat" 2>/dev/null)" = Z ]; }

# server_conf [EXTRA-SERVER-LINES] [EXTRA-PLUGINS]: writes $W/server.conf
server_conf() {
	: "${SPORT:=$(free_port)}"
	cat >"$W/server.conf" <<-EOF
		server {
			bind_address = "127.0.0.1"
			bind_port = $SPORT
			socket_path = "$W/server.sock"
			trust_domain = "$TD"
			data_dir = "$W/server"
			log_level = "DEBUG"
			${1:-}
		}
		plugins {
			DataStore "sql" {
				plugin_data {
					database_type = "sqlite3"
					connection_string = "$W/server/datastore.sqlite3"
				}
			}
			KeyManager "disk" {
				plugin_data {
					keys_path = "$W/server/keys.json"
				}
			}
			NodeAttestor "join_token" {
				plugin_data {}
			}
			${2:-}
		}
	EOF
}

# server_start: runs it, waits until it is healthy; its pid is in SPID
server_start() {
	[ -f "$W/server.conf" ] || server_conf
	"$SERVER" run -config "$W/server.conf" >>"$W/server.log" 2>&1 &
	SPID=$!
	pids+=("$SPID")
	until_ok 10 "$SERVER" healthcheck -socketPath "$W/server.sock" || return 1
}

# s NOUN VERB …: an operator's command at the server
s() {
	local noun=$1 verb=$2
	shift 2
	"$SERVER" "$noun" "$verb" -socketPath "$W/server.sock" "$@"
}

token() { s token generate -spiffeID "spiffe://$TD/node" | sed -n 's/^Token: //p'; }

# agent_conf [EXTRA-AGENT-LINES] [NODE-ATTESTOR]: writes $W/agent.conf
agent_conf() {
	cat >"$W/agent.conf" <<-EOF
		agent {
			data_dir = "$W/agent"
			log_level = "DEBUG"
			server_address = "127.0.0.1"
			server_port = $SPORT
			socket_path = "$W/public/agent.sock"
			admin_socket_path = "$W/private/admin.sock"
			trust_domain = "$TD"
			trust_bundle_path = "$W/bundle.pem"
			${1:-}
		}
		plugins {
			KeyManager "disk" {
				plugin_data {
					directory = "$W/agent"
				}
			}
			${2:-NodeAttestor \"join_token\" { plugin_data {\} \}}
			WorkloadAttestor "unix" {
				plugin_data {
					discover_workload_path = true
				}
			}
		}
	EOF
}

# agent_start [FLAGS…]: runs it and waits until its socket answers; its pid is in APID
agent_start() {
	mkdir -p "$W/agent"
	s bundle show >"$W/bundle.pem" 2>/dev/null || [ -s "$W/bundle.pem" ] || return 1
	[ -f "$W/agent.conf" ] || agent_conf
	"$AGENT" run -config "$W/agent.conf" "$@" >>"$W/agent.log" 2>&1 &
	APID=$!
	pids+=("$APID")
	until_ok 15 "$AGENT" healthcheck -socketPath "$W/public/agent.sock" || return 1
}

# both: a server, and an agent attested by a token whose alias is spiffe://$TD/node
both() {
	server_start && agent_start -joinToken "$(token)"
}

# entry PATH SELECTOR… [-- FLAGS]: registers spiffe://$TD/PATH under the agent's alias
entry() {
	local path=$1 args=() x
	shift
	while [ $# -gt 0 ]; do
		x=$1
		shift
		[ "$x" = -- ] && break
		args+=(-selector "$x")
	done
	s entry create -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/$path" "${args[@]}" "$@"
}

fetch() { "$AGENT" api fetch x509 -socketPath "$W/public/agent.sock" "$@"; }
fetch_ok() { until_ok 10 fetch; }
