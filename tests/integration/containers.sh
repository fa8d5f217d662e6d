#!/bin/bash
# Workloads in containers and units: a real dockerd (cgroup v1 and v2) and podman, without a registry, and a stand-in for systemd on a
# real bus. The processes that fetch run in the containers; the agent's socket is mounted there.
source "$(dirname "$0")/lib.sh"

D=$(mktemp -d "${TMPDIR:-/tmp}/assay-engine-XXXXXX")
chmod 755 "$D"
export DOCKER_HOST=unix://$D/docker.sock
unset DOCKER_CONTEXT DOCKER_CONFIG

docker_down() {
	local ids pid
	[ -s "$D/docker.pid" ] || return 0
	pid=$(cat "$D/docker.pid")
	ids=$(docker ps -aq 2>/dev/null)
	# shellcheck disable=SC2086
	[ -z "$ids" ] || docker rm -f $ids >/dev/null 2>&1
	kill "$pid" 2>/dev/null
	until_ok 15 gone "$pid" || kill -9 "$pid"
	rm -f "$D/docker.pid"
}

podman_down() {
	[ -d "$D/podman" ] || return 0
	pod rm -fa -t 0 >/dev/null 2>&1
	umount "$D"/podman/*/overlay 2>/dev/null
}

engines_down() {
	docker_down
	podman_down
	grep -oE " $D/[^ ]+" /proc/mounts | sort -r | xargs -r umount -l 2>/dev/null
	rm -rf "$D"
}
trap 'engines_down; cleanup' EXIT

# need COMMAND…
need() {
	[ "$(id -u)" = 0 ] || skip 'containers need root'
	local c
	for c in "$@"; do command -v "$c" >/dev/null || skip "no $c here, and it cannot be installed"; done
}

# An image of a busybox and the agent's program with the libraries that it needs.
image() {
	[ -s "$D/app.tar" ] && return
	local files=("/bin/busybox=/bin/busybox" "/bin/assay-agent=$AGENT") lib
	for lib in $(ldd "$AGENT" | grep -oE '/[^ ]+'); do files+=("$lib=$lib"); done
	[ -x /bin/busybox ] || skip 'no static busybox (apt: busybox-static)'
	python3 tests/e2e/image.py "$D/app.tar" assay.test/app:1 "${files[@]}"
}

# dockerd_up v1|v2
dockerd_up() {
	local wrap=() args=(--host "$DOCKER_HOST" --data-root "$D/data" --exec-root "$D/exec" --pidfile "$D/docker.pid" --bridge=none
		--iptables=false --ip6tables=false)
	need dockerd runc
	if [ "$1" = v2 ]; then
		# A view of the unified hierarchy alone, whatever the host has.
		wrap=(unshare -m --propagation private bash -c 'umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"' _)
		"${wrap[@]}" true 2>/dev/null || skip 'no view of cgroup v2 alone can be made here'
	fi
	docker_down
	"${wrap[@]}" dockerd "${args[@]}" >"$D/dockerd.log" 2>&1 &
	disown # it serves several tests
	until_ok 30 docker info || skip "dockerd does not run here: $(tail -n 1 "$D/dockerd.log")"
	docker image inspect assay.test/app:1 >/dev/null 2>&1 && return
	image || return 1
	docker load -q -i "$D/app.tar" >/dev/null
}

# agent_with PLUGINS: a server, and an agent with these attestors besides unix
agent_with() {
	server_start || return 1
	agent_conf '' "NodeAttestor \"join_token\" { plugin_data {} } $1"
	agent_start -joinToken "$(token)"
}

with_docker() {
	agent_with "WorkloadAttestor \"docker\" { plugin_data { docker_socket_path = \"$DOCKER_HOST\"
		podman_socket_path = \"unix://$D/podman.sock\" verbose_container_locator_logs = true } }"
}

# run NAME FLAGS…: a container that sleeps, with the agent's socket
run() {
	local name=$1
	shift
	docker run -d --name "$name" --network none -v "$W/public:/agent" "$@" --entrypoint /bin/sleep assay.test/app:1 600 >/dev/null
}
# in_container NAME: what a process in it is given
in_container() { docker exec "$1" assay-agent api fetch x509 -socketPath /agent/agent.sock 2>&1; }
gives() { in_container "$1" | grep -qF "spiffe://$TD/$2"; }
pid_of() { docker inspect -f '{{.State.Pid}}' "$1"; }
explain() { "$AGENT" explain -socketPath "$W/private/admin.sock" -pid "$1"; }

selectors() {
	with_docker || return 1
	local digest id
	digest=$(docker image inspect -f '{{.Id}}' assay.test/app:1)
	entry label docker:label:role:web >/dev/null && entry env docker:env:TIER=front >/dev/null &&
		entry image docker:image_id:assay.test/app:1 docker:label:role:web >/dev/null &&
		entry digest "docker:image_config_digest:$digest" docker:env:TIER=front >/dev/null || return 1
	entry 'never' docker:label:role:webmaster >/dev/null
	run web --label role=web -e TIER=front || return 1
	grep -q "$(docker inspect -f '{{.Id}}' web)" "/proc/$(pid_of web)/cgroup" || die 'the container cannot be told from its cgroup'
	until_ok 10 gives web label || die "$(in_container web)"
	in_container web >"$W/got"
	for id in label env image digest; do grep -q "spiffe://$TD/$id\$" "$W/got" || die "no $id in $(cat "$W/got")"; done
	! grep -q never "$W/got" || die "$(cat "$W/got")"
	# Its own first process, which asks as soon as it lives.
	docker run --rm --network none -v "$W/public:/agent" --label role=web --entrypoint /bin/assay-agent assay.test/app:1 \
		api fetch x509 -socketPath /agent/agent.sock >"$W/got" 2>&1 || die "$(cat "$W/got")"
	grep -q "spiffe://$TD/label\$" "$W/got" && ! grep -q "spiffe://$TD/env\$" "$W/got" || die "$(cat "$W/got")"
	explain "$(pid_of web)" >"$W/got"
	cat "$W/got"
	grep -q 'docker:label:role:web$' "$W/got" && grep -q 'docker:env:TIER=front$' "$W/got" && grep -q "docker:image_config_digest:$digest\$" "$W/got"
	docker rm -f web >/dev/null
}

wrong_container() {
	with_docker || return 1
	entry web docker:label:role:web >/dev/null || return 1
	run web --label role=web && run db --label role=db || return 1
	until_ok 10 gives web web || return 1
	in_container db >"$W/got"
	grep -q 'no identity issued' "$W/got" || die "$(cat "$W/got")"
	explain "$(pid_of db)" >"$W/got"
	grep -q 'lacks docker:label:role:web' "$W/got" || die "$(cat "$W/got")"
	# The host's own processes are in no container.
	! fetch >"$W/got" 2>&1 && grep -q 'no identity issued' "$W/got" || die "$(cat "$W/got")"
	docker rm -f web db >/dev/null
}

# What is stopped has no processes; started again it is what it was, with new ones.
stopped() {
	with_docker || return 1
	entry web docker:label:role:web >/dev/null || return 1
	run web --label role=web || return 1
	until_ok 10 gives web web || return 1
	local pid
	pid=$(pid_of web)
	docker exec web assay-agent api watch -socketPath /agent/agent.sock >"$W/watch" 2>&1 &
	pids+=($!)
	until_ok 5 grep -q "spiffe://$TD/web" "$W/watch" || die "$(cat "$W/watch")"
	docker stop -t 0 web >/dev/null
	until_ok 5 gone "${pids[-1]}" || die 'a process of the container goes on'
	! explain "$pid" >"$W/got" 2>&1 || die "$(cat "$W/got")"
	grep -q "no process $pid" "$W/got" || die "$(cat "$W/got")"
	docker start web >/dev/null && gives web web || die "$(in_container web)"
	docker rm -f web >/dev/null
}

# A process of the host in a control group of a container's name.
impostor() {
	with_docker || return 1
	entry web docker:label:role:web >/dev/null || return 1
	run web --label role=web || return 1
	until_ok 10 gives web web || return 1
	local id group tree
	id=$(docker inspect -f '{{.Id}}' web)
	for tree in /sys/fs/cgroup/unified /sys/fs/cgroup; do
		group=$tree/assay-test-$$/$id
		mkdir -p "$group" 2>/dev/null && [ -e "$group/cgroup.procs" ] && break
	done
	cat >"$W/inside" <<-EOT
		echo \$\$ >"$group/cgroup.procs" || exit 9
		exec "$AGENT" api fetch x509 -socketPath "$W/public/agent.sock"
	EOT
	bash "$W/inside" >"$W/got" 2>&1
	bash -c "echo \$\$ >'$group/cgroup.procs'; exec sleep 20" &
	pids+=($!)
	until_ok 5 grep -q "$id" "/proc/$!/cgroup"
	explain $! >"$W/said"
	kill -9 $!
	wait $! 2>/dev/null
	until_ok 5 rmdir "$group" "${group%/*}"
	grep -q 'no identity issued' "$W/got" || die "$(cat "$W/got")"
	grep -q "claims container $id" "$W/said" || die "$(cat "$W/said")"
	docker rm -f web >/dev/null
}

# With the mounts of a container, which anybody can make who has a mount namespace, nobody is one.
mounts() {
	with_docker || return 1
	entry web docker:label:role:web >/dev/null || return 1
	run web --label role=web || return 1
	until_ok 10 gives web web || return 1
	local group
	group=$(find /sys/fs/cgroup -type d -path "*/docker/$(docker inspect -f '{{.Id}}' web)" 2>/dev/null | head -n 1)
	[ -n "$group" ] || skip 'the control group is not to be seen here'
	mkdir "$W/mnt"
	unshare -m --propagation private bash -c "mount --bind '$group' '$W/mnt' && grep -q docker /proc/self/mountinfo &&
		'$AGENT' api fetch x509 -socketPath '$W/public/agent.sock'" >"$W/got" 2>&1
	grep -q 'no identity issued' "$W/got" || die "$(cat "$W/got")"
	docker rm -f web >/dev/null
}

# An agent in a cgroup namespace of its own, as in a container: paths are relative, and mounts count for those who share it.
namespaced() {
	local tree group real=$AGENT
	unshare --cgroup true 2>/dev/null || skip 'no cgroup namespaces here'
	for tree in /sys/fs/cgroup/unified /sys/fs/cgroup; do
		group=$tree/assay-agent-$$
		mkdir -p "$group" 2>/dev/null && [ -e "$group/cgroup.procs" ] && break
	done
	cat >"$W/wrapped" <<-EOT
		#!/bin/bash
		[ "\$1" = run ] || exec "$real" "\$@"
		echo \$\$ >"$group/cgroup.procs" && exec unshare --cgroup "$real" "\$@"
	EOT
	chmod +x "$W/wrapped"
	AGENT=$W/wrapped with_docker || return 1
	entry web docker:label:role:web >/dev/null && entry root unix:uid:0 >/dev/null || return 1
	run web --label role=web || return 1
	until_ok 10 gives web web || die "$(in_container web)"
	explain "$(pid_of web)" | grep -q 'docker:label:role:web$' || return 1
	explain $$ >"$W/got"
	kill "$APID" && until_ok 5 gone "$APID"
	until_ok 5 rmdir "$group"
	grep -A1 'Attestor docker found in' "$W/got" | grep -q nothing || die "$(cat "$W/got")"
	docker rm -f web >/dev/null
}

# Without the engine, what the unix attestor finds still counts, and explain says what is wrong.
engine_away() {
	agent_with 'WorkloadAttestor "docker" { plugin_data { docker_socket_path = "unix:///nowhere/docker.sock" } }' || return 1
	entry root unix:uid:0 >/dev/null && entry web docker:label:role:web >/dev/null || return 1
	run web --label role=web || return 1
	until_ok 10 gives web root || die "$(in_container web)"
	in_container web >"$W/got"
	! grep -q "spiffe://$TD/web\$" "$W/got" || die "$(cat "$W/got")"
	explain "$(pid_of web)" >"$W/got"
	cat "$W/got"
	grep -q 'Attestor docker failed after' "$W/got" && grep -q 'waited for docker at unix:///nowhere/docker.sock' "$W/got" || return 1
	grep -q 'Failed to collect all selectors' "$W/agent.log" || return 1
	docker rm -f web >/dev/null
}

# An engine that takes connections and says nothing holds up its containers' processes, and nobody else.
engine_mute() {
	python3 -c 'import socket, sys, time
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(50); time.sleep(60)' "$W/mute.sock" &
	pids+=($!)
	agent_with "WorkloadAttestor \"docker\" { plugin_data { docker_socket_path = \"unix://$W/mute.sock\" } }" || return 1
	entry root unix:uid:0 >/dev/null && until_ok 10 fetch && run web || return 1
	local k start
	for k in 1 2 3 4 5 6 7 8; do
		in_container web >"$W/got$k" &
		pids+=($!)
	done
	sleep 0.5
	start=${EPOCHREALTIME/./}
	for k in 1 2 3 4 5; do fetch >/dev/null || return 1; done
	[ $((${EPOCHREALTIME/./} - start)) -lt 2000000 ] || die "$((${EPOCHREALTIME/./} - start)) µs for five others"
	! cat "$W"/got? | grep -q "spiffe://$TD/root" || die 'it did not wait for the engine'
	# The end of a process ends the waiting; the agent's end too.
	docker rm -f web >/dev/null
	kill "$APID" && until_ok 3 gone "$APID"
}

# ---- podman ----

# Podman needs low limits here (no CAP_SYS_RESOURCE), and runc on hybrid hosts.
PODMAN=(podman --root "$D/podman/root" --runroot "$D/podman/run" --cgroup-manager cgroupfs --events-backend none --runtime runc)
pod() { "${PODMAN[@]}" "$@"; }

podman_selectors() {
	need podman runc
	mkdir -p "$D/podman"
	image || return 1
	pod load -q -i "$D/app.tar" >"$W/load" 2>&1 || skip "podman does not run here: $(tail -n 1 "$W/load")"
	"${PODMAN[@]}" system service -t 0 "unix://$D/podman.sock" >"$W/podman.log" 2>&1 &
	pids+=($!)
	until_ok 10 curl -sf --unix-socket "$D/podman.sock" http://d/_ping || skip "podman's API does not run here: $(tail -n 1 "$W/podman.log")"
	with_docker || return 1
	entry pod docker:label:role:pod docker:env:TIER=back docker:image_id:assay.test/app:1 >/dev/null || return 1
	entry digest docker:label:role:pod "docker:image_config_digest:$(pod image inspect -f 'sha256:{{.Id}}' assay.test/app:1)" >/dev/null
	pod run -d --name pod --ulimit nofile=1024:4096 --ulimit nproc=4096:4096 --network none -v "$W/public:/agent" --label role=pod -e TIER=back \
		--entrypoint /bin/sleep assay.test/app:1 600 >"$W/run" 2>&1 || skip "podman runs no container here: $(tail -n 1 "$W/run")"
	in_pod() { pod exec pod assay-agent api fetch x509 -socketPath /agent/agent.sock; }
	until_ok 10 in_pod
	in_pod >"$W/got" 2>&1
	explain "$(pod inspect -f '{{.State.Pid}}' pod)"
	grep -q "spiffe://$TD/pod\$" "$W/got" && grep -q "spiffe://$TD/digest\$" "$W/got" || die "$(cat "$W/got")"
	pod rm -f -t 0 pod >/dev/null 2>&1
}

# ---- systemd ----

# bus_up [old|mute]: a bus, and the stand-in that knows the units of the file $W/units
bus_up() {
	need dbus-daemon /usr/bin/python3
	/usr/bin/python3 -c 'import jeepney' 2>/dev/null || skip 'no D-Bus for Python (apt: python3-jeepney)'
	export DBUS_SYSTEM_BUS_ADDRESS=unix:path=$W/bus
	cat >"$W/bus.conf" <<-EOT
		<busconfig><type>session</type><listen>$DBUS_SYSTEM_BUS_ADDRESS</listen><auth>EXTERNAL</auth><policy context="default">
		<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
	EOT
	touch "$W/units"
	dbus-daemon --config-file="$W/bus.conf" --nofork --nosyslog >>"$W/bus.log" 2>&1 &
	BPID=$!
	pids+=("$BPID")
	until_ok 10 test -S "$W/bus" || return 1
	/usr/bin/python3 tests/integration/systemd1.py "$W/units" "$@" >"$W/calls" 2>"$W/standin.log" &
	pids+=($!)
	until_ok 10 grep -q ready "$W/calls"
}

# as_unit ID FRAGMENT: what a process of that unit is given
as_unit() {
	bash -c "echo \$\$ '$1' '$2' >>'$W/units'; exec '$AGENT' api fetch x509 -socketPath '$W/public/agent.sock'" 2>&1
}
unit_gives() { as_unit "$1" "$2" | grep -qF "spiffe://$TD/$3"; }

units() {
	bus_up && agent_with 'WorkloadAttestor "systemd" {}' || return 1
	entry web systemd:id:web.service systemd:fragment_path:/lib/systemd/system/web.service >/dev/null || return 1
	until_ok 10 unit_gives web.service /lib/systemd/system/web.service web || die "$(as_unit web.service /lib/systemd/system/web.service)"
	grep -q '^GetUnitByPIDFD' "$W/calls" && ! grep -q '^GetUnitByPID ' "$W/calls" || die "$(cat "$W/calls")"
	as_unit other.service /lib/systemd/system/other.service >"$W/got"
	grep -q 'no identity issued' "$W/got" || die "$(cat "$W/got")"
	bash -c "echo \$\$ run-1.scope >>'$W/units'; exec sleep 20" &
	pids+=($!)
	until_ok 5 grep -q "^$! " "$W/units"
	explain $! >"$W/got"
	cat "$W/got"
	grep -q 'systemd:id:run-1.scope$' "$W/got" && grep -q 'systemd:fragment_path:$' "$W/got" || return 1
	grep -q 'waited for systemd' "$W/got" && grep -q 'lacks systemd:id:web.service' "$W/got" || return 1
	# In no unit: that attestor fails, the others' selectors count.
	explain $$ >"$W/got"
	grep -q "failed to get unit by pid $$: PID $$ does not belong to any loaded unit" "$W/got" || die "$(cat "$W/got")"
	entry root unix:uid:0 >/dev/null && until_ok 10 fetch || return 1
	# The bus is started anew.
	kill "$BPID"
	until_ok 5 gone "$BPID"
	explain $$ | grep -q 'failed to open dbus connection' || return 1
	rm -f "$W/bus"
	bus_up old || return 1
	until_ok 10 unit_gives web.service /lib/systemd/system/web.service web || return 1
	grep -q '^GetUnitByPID ' "$W/calls" || die "$(cat "$W/calls")"
}

# One that does not answer is waited for 5 s, by all of them at the same time.
mute() {
	bus_up mute && agent_with 'WorkloadAttestor "systemd" {}' || return 1
	entry root unix:uid:0 >/dev/null || return 1
	local start=${EPOCHREALTIME/./} k
	for k in 1 2 3 4 5; do
		"$AGENT" api fetch x509 -timeout 20s -socketPath "$W/public/agent.sock" >"$W/got$k" 2>&1 &
		pids+=($!)
	done
	for k in 1 2 3 4 5; do wait "${pids[-$k]}"; done
	[ $((${EPOCHREALTIME/./} - start)) -lt 12000000 ] || die "$((${EPOCHREALTIME/./} - start)) µs"
	grep -l "spiffe://$TD/root" "$W"/got? | wc -l | grep -qx 5 || die "$(cat "$W"/got?)"
	kill "$APID" && until_ok 8 gone "$APID"
}

deploy/deps.sh containers >/dev/null 2>&1
engine() { dockerd_up "$1"; }
for view in v1 v2; do
	t "dockerd, cgroup $view" engine $view
	[ -s "$D/docker.pid" ] || continue
	t "docker $view: selectors" selectors
	t "docker $view: an impostor's control group" impostor
	[ $view = v1 ] || continue
	t 'docker: the wrong container' wrong_container
	t 'docker: stopped' stopped
	t 'docker: mounts are not believed' mounts
	t 'docker: the agent in a cgroup namespace' namespaced
	t 'docker: the engine is away' engine_away
	t 'docker: the engine says nothing' engine_mute
done
docker_down
t 'podman: selectors' podman_selectors
t 'systemd: units' units
t 'systemd: no answer' mute
finish
