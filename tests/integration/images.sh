#!/bin/bash
# The container images: their shape and size, the same bytes twice, and at work in a containerd of the test's own.
source "$(dirname "$0")/lib.sh"
VERSION=1.2.3-test

# image server|agent [FOLDER]: builds it into FOLDER
image() {
	mkdir -p "${2:-$W}"
	SOURCE_DATE_EPOCH=${EPOCH-1000000000} deploy/image.py "$1" --bin "${BIN:-$O}/assay-$1" --version "$VERSION" --out "${2:-$W}/$1.tar"
}

shape() {
	image server && image agent || return 1
	python3 tests/integration/images.py "$W/server.tar" 20 65532 && python3 tests/integration/images.py "$W/agent.tar" 15 0
}

# From copies elsewhere, with other times and another umask.
same_twice() {
	local p BIN
	for p in server agent; do
		image "$p" "$W/a" || return 1
		mkdir -p "$W/bin" "$W/b"
		cp "$O/assay-$p" "$W/bin/"
		touch -d 2001-01-01 "$W/bin/assay-$p"
		(umask 077 && BIN=$W/bin && TZ=Asia/Tokyo image "$p" "$W/b") || return 1
		cmp "$W/a/$p.tar" "$W/b/$p.tar" || die "$p.tar differs"
	done
	EPOCH=1000000001 image agent "$W/b"
	! cmp -s "$W/a/agent.tar" "$W/b/agent.tar" || die 'SOURCE_DATE_EPOCH has no effect'
}

refused() {
	! VERSION='a b' image agent >"$W/say" 2>&1 || return 1
	grep -q "cannot be an image's tag" "$W/say" || die "$(cat "$W/say")"
	[ ! -e "$W/agent.tar" ] || die 'an archive all the same'
	# A program that grew beyond what is allowed.
	mkdir "$W/big"
	cp "$O/assay-agent" "$W/big/"
	head -c 20000000 /dev/zero >"$W/zeros"
	objcopy --add-section .weight="$W/zeros" --set-section-flags .weight=alloc,contents,readonly,load "$W/big/assay-agent" 2>/dev/null
	! BIN=$W/big image agent >"$W/say" 2>&1 || return 1
	grep -q 'more than the 15 MB' "$W/say" || die "$(cat "$W/say")"
}

# ---- in containers ----

need() {
	[ "$(id -u)" = 0 ] || skip 'containers need root'
	local p
	for p in containerd runc ctr; do command -v "$p" >/dev/null || skip "no $p (apt: containerd runc)"; done
	containerd_up || skip "containerd does not start here: $(tail -n 1 "$W/containerd.log")"
}

containerd_up() {
	mkdir -p "$W/c"
	cat >"$W/c/config.toml" <<-EOT
		version = 2
		root = "$W/c/root"
		state = "$W/c/state"
		disabled_plugins = ["io.containerd.grpc.v1.cri"]
		[grpc]
		  address = "$W/c/sock"
		[ttrpc]
		  address = "$W/c/ttrpc"
	EOT
	containerd --config "$W/c/config.toml" >"$W/containerd.log" 2>&1 &
	CTD=$!
	pids+=("$CTD")
	until_ok 10 c version
}

c() { ctr -a "$W/c/sock" -n assay-test "$@"; }

# What runs in containers ends with the test; then containerd's own mounts go.
containers_end() {
	local i
	for i in $(c tasks ls -q 2>/dev/null); do c tasks kill -s KILL "$i" >/dev/null 2>&1; done
	until_ok 5 no_tasks
	for i in $(c containers ls -q 2>/dev/null); do
		c tasks rm -f "$i" >/dev/null 2>&1
		c containers rm "$i" >/dev/null 2>&1
	done
	kill "$CTD" && until_ok 5 gone "$CTD"
	grep -o "$W/c/[^ ]*" /proc/self/mountinfo | sort -r | xargs -r -n 1 umount -l
}
no_tasks() { ! c tasks ls | grep -q RUNNING; }

entrypoint() { tar -xOf "$W/$1.tar" "$(tar -xOf "$W/$1.tar" manifest.json | jq -r '.[0].Config')" | jq -r '.config.Entrypoint[]'; }

# start NAME IMAGE FLAGS… -- ARGS…: a container with the host's network, as the image's user. ctr, given arguments, leaves out the
# image's entry point, which a kubelet or docker puts before them.
start() {
	local name=$1 image=$2 flags=() entry
	mapfile -t entry < <(entrypoint "$image")
	shift 2
	while [ "$1" != -- ]; do
		flags+=("$1")
		shift
	done
	shift
	c run -d --net-host --read-only --cgroup "" "${flags[@]}" "docker.io/library/assay-$image:$VERSION" "$name" "${entry[@]}" "$@" >"$W/$name.log" 2>&1 ||
		skip "this machine runs no container: $(tail -n 1 "$W/$name.log")"
}
mount_of() { echo "type=bind,src=$1,dst=$2,options=rbind:${3:-rw}"; }
inside() {
	local name=$1
	shift
	c tasks exec --exec-id "x$RANDOM$RANDOM" "$name" "$@"
}

confs() {
	SPORT=$(free_port)
	cat >"$W/conf/server.conf" <<-EOT
		server {
			bind_address = "127.0.0.1"
			bind_port = $SPORT
			trust_domain = "$TD"
		}
		plugins {
			DataStore "sql" { plugin_data {
				database_type = "sqlite3"
				connection_string = "/var/lib/assay/server/datastore.sqlite3"
			} }
			KeyManager "disk" { plugin_data { keys_path = "/var/lib/assay/server/keys.json" } }
			NodeAttestor "join_token" { plugin_data {} }
		}
	EOT
	cat >"$W/conf/agent.conf" <<-EOT
		agent {
			server_address = "localhost"
			server_port = $SPORT
			trust_domain = "$TD"
			trust_bundle_path = "/etc/assay/bundle.pem"
		}
		plugins {
			KeyManager "disk" { plugin_data { directory = "/var/lib/assay/agent" } }
			NodeAttestor "join_token" { plugin_data {} }
			WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }
		}
	EOT
}

# Server and agent as containers with a read-only root; a process beside the agent gets its identity.
at_work() {
	need
	trap 'containers_end; for p in "${pids[@]}"; do kill -9 "$p" 2>/dev/null; done; wait 2>/dev/null' EXIT
	image server && image agent || return 1
	c images import "$W/server.tar" && c images import "$W/agent.tar" || return 1
	mkdir -p "$W/conf" "$W/server" "$W/run" "$W/agent" "$W/public"
	chown 65532:65532 "$W/server" "$W/run"
	confs
	# As SPIRE's images are used now: the image says `run`.
	start server server --mount "$(mount_of "$W/conf" /etc/assay ro)" --mount "$(mount_of "$W/server" /var/lib/assay/server)" \
		--mount "$(mount_of "$W/run" /run/assay/server)" -- -config /etc/assay/server.conf
	until_ok 10 inside server /opt/assay/bin/assay-server healthcheck || return 1
	inside server /opt/spire/bin/spire-server healthcheck || return 1
	[ "$(stat -c %u "$W/server/keys.json")" = 65532 ] || die 'the server does not run as its own user'
	inside server /opt/assay/bin/assay-server bundle show >"$W/conf/bundle.pem" || return 1
	local tok
	tok=$(inside server /opt/assay/bin/assay-server token generate -spiffeID "spiffe://$TD/node" | sed -n 's/^Token: //p')
	inside server /opt/assay/bin/assay-server entry create -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/web" \
		-selector "unix:uid:$(id -u)" -selector unix:path:/opt/assay/bin/assay-agent || return 1
	# As older manifests have it, which say `run` themselves. "localhost" is resolved by the image's own libc.
	start agent agent --mount "$(mount_of "$W/conf" /etc/assay ro)" \
		--mount "$(mount_of "$W/agent" /var/lib/assay/agent)" --mount "$(mount_of /etc/hosts /etc/hosts ro)" \
		--mount "$(mount_of "$W/public" /run/assay/agent/public)" -- run -config /etc/assay/agent.conf -joinToken "$tok"
	until_ok 10 inside agent /opt/assay/bin/assay-agent healthcheck || return 1
	until_ok 10 inside agent /opt/assay/bin/assay-agent api fetch x509 || return 1
	inside agent /opt/assay/bin/assay-agent api fetch x509 | grep "spiffe://$TD/web"
}

# docker load, podman load: the archive is theirs too.
loads() {
	local tool=$1
	command -v "$tool" >/dev/null || skip "no $tool"
	image agent || return 1
	case $tool in
	podman)
		podman --root "$W/p" --runroot "$W/pr" --storage-driver vfs load -i "$W/agent.tar" >"$W/say" 2>&1 || {
			grep -qiE 'loading|no such|invalid|manifest|digest' "$W/say" && die "$(cat "$W/say")"
			skip "podman does not work here: $(tail -n 1 "$W/say")"
		}
		podman --root "$W/p" --runroot "$W/pr" --storage-driver vfs images --format '{{.Repository}}:{{.Tag}}' | grep -q "assay-agent:$VERSION"
		;;
	docker)
		[ "$(id -u)" = 0 ] && command -v dockerd >/dev/null || skip 'no dockerd, or not root'
		local DOCKER_HOST=unix://$W/docker.sock
		export DOCKER_HOST
		dockerd --host "$DOCKER_HOST" --data-root "$W/d" --exec-root "$W/dx" --pidfile "$W/docker.pid" --bridge=none --iptables=false \
			--ip6tables=false >"$W/dockerd.log" 2>&1 &
		DPID=$!
		pids+=("$DPID")
		trap 'kill "$DPID"; until_ok 10 gone "$DPID"; grep -o "$W/dx*[^ ]*" /proc/self/mountinfo | sort -r | xargs -r -n 1 umount -l' EXIT
		until_ok 20 docker info || skip "dockerd does not start here: $(tail -n 1 "$W/dockerd.log")"
		docker load -i "$W/agent.tar" || return 1
		[ "$(docker run --rm --network none --read-only --cap-drop ALL --entrypoint /opt/assay/bin/assay-agent "assay-agent:$VERSION" \
			--version)" = "$("$AGENT" --version)" ]
		;;
	esac
}

t 'sound archives, of the right size' shape
t 'the same bytes twice' same_twice
t 'what is refused' refused
t 'server and agent at work in containers' at_work
t 'podman load' loads podman
t 'docker load' loads docker
finish
