#!/bin/bash
# The CSI driver as the kubelet meets it: over gRPC, with real mounts in a mount namespace of the script's own.
if [ "$(id -u)" = 0 ] && [ "${ASSAY_IN_NS:-}" != 1 ] && unshare -m true 2>/dev/null; then
	exec env ASSAY_IN_NS=1 unshare -m --propagation private bash "$0" "$@"
fi
source "$(dirname "$0")/lib.sh"
cache=${ASSAY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/assay}
DESCRIPTORS=$(dirname "$O")/gen/descriptors.bin
POD=volumes/kubernetes.io~csi/spiffe
# What a test that failed left mounted.
trap 'grep -o "$W/pods/[^ ]*" /proc/self/mountinfo | xargs -r umount; cleanup' EXIT

# The Python clients' own environment has grpcio.
need() {
	[ "${ASSAY_IN_NS:-}" = 1 ] || skip 'mounting needs root and a mount namespace'
	local v
	v=$cache/py-$(sha256sum <tests/interop/py/requirements.txt | cut -c1-12)
	if ! "$v/bin/python" -c 'import grpc, google.protobuf' 2>/dev/null; then
		rm -rf "$v"
		{ python3 -m venv "$v" && "$v/bin/pip" install -q -r tests/interop/py/requirements.txt; } >"$W/pip" 2>&1 ||
			skip "grpcio could not be installed: $(tail -n 1 "$W/pip")"
	fi
	PYTHON=$v/bin/python
}

call() { "$PYTHON" tests/integration/csi.py "$DESCRIPTORS" "${SOCK:-$W/csi/csi.sock}" "$@"; }
healthy() { "$AGENT" healthcheck -socketPath "$W/csi/csi.sock"; }

# driver [FLAGS…]: runs it; its pid is in CPID
driver() {
	mkdir -p "$W/csi" "$W/registration" "$W/agent-sockets" "$W/pods/$POD"
	MY_NODE_NAME=node1 "$AGENT" csi -csi-socket-path "$W/csi/csi.sock" -workload-api-socket-dir "$W/agent-sockets" \
		-kubelet-registration-path /var/lib/kubelet/plugins/csi.spiffe.io/csi.sock \
		-plugin-registration-path "$W/registration" "$@" >>"$W/csi.log" 2>&1 &
	CPID=$!
	pids+=("$CPID")
	until_ok 10 healthy
}

# publish [JQ-CHANGE]: what the kubelet asks for a pod's volume
publish() {
	call csi.v1.Node/NodePublishVolume "$(jq -cn --arg t "$W/pods/$POD/mount" '{volume_id: "csi-0001", target_path: $t, readonly: true,
		volume_capability: {mount: {}, access_mode: {mode: "SINGLE_NODE_WRITER"}},
		volume_context: {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.name": "web"}} | '"${1:-.}")"
}
unpublish() {
	call csi.v1.Node/NodeUnpublishVolume "$(jq -cn --arg t "$W/pods/$POD/mount" '{volume_id: "csi-0001", target_path: $t}')"
}
stats() {
	call csi.v1.Node/NodeGetVolumeStats "$(jq -cn --arg t "$W/pods/$POD/mount" '{volume_id: "csi-0001", volume_path: $t}')"
}
is() { [ "$1" = "$2" ] || die "is: $1
not: $2"; }

identity() {
	need
	driver || return 1
	is "$(call csi.v1.Identity/GetPluginInfo | jq -r .name)" csi.spiffe.io
	is "$(call csi.v1.Identity/GetPluginInfo | jq -r .vendor_version)" "$("$AGENT" --version)"
	is "$(call csi.v1.Identity/GetPluginCapabilities)" '{}'
	is "$(call csi.v1.Identity/Probe)" '{}'
	is "$(call csi.v1.Node/NodeGetInfo)" '{"node_id": "node1"}'
	is "$(call csi.v1.Node/NodeGetCapabilities)" \
		'{"capabilities": [{"rpc": {"type": "VOLUME_CONDITION"}}, {"rpc": {"type": "GET_VOLUME_STATS"}}]}'
	is "$(stat -c %a "$W/csi/csi.sock")" 600
}

registration() {
	need
	driver || return 1
	local SOCK=$W/registration/csi.spiffe.io-reg.sock
	is "$(call pluginregistration.Registration/GetInfo)" \
		'{"endpoint": "/var/lib/kubelet/plugins/csi.spiffe.io/csi.sock", "name": "csi.spiffe.io", "supported_versions": ["1.0.0"], "type": "CSIPlugin"}'
	is "$(call pluginregistration.Registration/NotifyRegistrationStatus '{"plugin_registered": true}')" '{}'
	grep -q 'Registered with the kubelet' "$W/csi.log" || die 'not in the log'
	call pluginregistration.Registration/NotifyRegistrationStatus '{"error": "no such version"}' >/dev/null
	grep -q 'refused.*no such version' "$W/csi.log" || die 'refusal not in the log'
	# Gone when the driver goes, so that the kubelet knows.
	kill "$CPID"
	until_ok 5 gone "$CPID" || return 1
	[ ! -e "$SOCK" ] && [ ! -e "$W/csi/csi.sock" ]
}

volumes() {
	need
	driver || return 1
	is "$(publish)" '{}'
	touch "$W/agent-sockets/api.sock"
	[ -e "$W/pods/$POD/mount/api.sock" ] || die 'the socket is not seen'
	! touch "$W/pods/$POD/mount/x" 2>/dev/null || die 'can be written'
	is "$(publish)" '{}'
	is "$(stats)" '{"volume_condition": {"message": "mounted"}}'
	is "$(unpublish)" '{}'
	[ ! -e "$W/pods/$POD/mount" ] || die 'still there'
	is "$(unpublish)" '{}'
	is "$(stats)" '{"volume_condition": {"abnormal": true, "message": "volume path is not mounted"}}'
}

refusals() {
	need
	driver || return 1
	is "$(publish '.readonly = false')" "INVALID_ARGUMENT: pod.spec.volumes[].csi.readOnly must be set to 'true'"
	is "$(publish 'del(.volume_context)')" 'INVALID_ARGUMENT: only ephemeral volumes are supported'
	is "$(publish '.target_path += "/../../x"')" 'INVALID_ARGUMENT: target path must not have "." or ".." as an element'
	is "$(publish '.target_path = "x"')" 'INVALID_ARGUMENT: target path must be absolute'
	is "$(publish '.volume_capability = {block: {}}')" 'INVALID_ARGUMENT: request volume capability access type must be a simple mount'
	is "$(publish '.volume_id = ""')" 'INVALID_ARGUMENT: request missing required volume id'
	is "$(publish '.target_path = "/nowhere/at/all"')" \
		'INTERNAL: unable to create target path "/nowhere/at/all": mkdir /nowhere/at/all: no such file or directory'
	# More than any kubelet sends.
	case $(publish '.volume_context.x = "a" * 70000') in
	RESOURCE_EXHAUSTED:*) ;;
	*) die 'a message without bound' ;;
	esac
	healthy || die 'the driver does not live on'
	[ ! -e "$W/pods/$POD/mount" ] || die 'something was made'
}

# Killed or ended in order, the driver leaves what is mounted, and another goes on with it.
restarts() {
	need
	driver || return 1
	is "$(publish)" '{}'
	kill -9 "$CPID"
	until_ok 5 gone "$CPID" || return 1
	mountpoint -q "$W/pods/$POD/mount" || die 'mount lost'
	driver || return 1
	is "$(publish)" '{}'
	is "$(stats)" '{"volume_condition": {"message": "mounted"}}'
	kill "$CPID"
	until_ok 5 gone "$CPID" || return 1
	mountpoint -q "$W/pods/$POD/mount" || die 'mount lost'
	driver || return 1
	is "$(unpublish)" '{}'
	[ ! -e "$W/pods/$POD/mount" ] || die 'still there'
}

# With the folder deleted there is nothing to give: the driver says so and ends, as only a new start can find the new one.
source_deleted() {
	need
	driver || return 1
	is "$(publish)" '{}'
	rmdir "$W/agent-sockets"
	stats | grep -q '"abnormal": true' || die 'not abnormal'
	is "$(publish)" "INTERNAL: unable to mount \"$W/pods/$POD/mount\": the Workload API socket directory was deleted"
	until_ok 5 gone "$CPID" || return 1
	wait "$CPID"
	is "$?" 1
	driver || return 1
	is "$(publish)" '{}'
	is "$(stats)" '{"volume_condition": {"message": "mounted"}}'
	is "$(unpublish)" '{}'
}

# Ten pods at once, each mounted once.
many() {
	need
	driver || return 1
	local i waits=()
	for i in $(seq 10); do
		mkdir -p "$W/pods/$i"
		publish ".target_path = \"$W/pods/$i/mount\"" >"$W/out.$((i % 2))" 2>&1 &
		waits+=("$!")
		publish ".target_path = \"$W/pods/$i/mount\"" >/dev/null 2>&1 &
		waits+=("$!")
	done
	wait "${waits[@]}"
	is "$(grep -c "$W/pods/[0-9]*/mount" /proc/self/mountinfo)" 10
	for i in $(seq 10); do umount "$W/pods/$i/mount" || return 1; done
}

# Beside a running agent: a process in another root that has only the volume gets its identity.
with_agent() {
	need
	both && entry web "unix:uid:$(id -u)" >/dev/null && fetch_ok || return 1
	mkdir -p "$W/csi" "$W/pods/$POD"
	MY_NODE_NAME=node1 "$AGENT" csi -csi-socket-path "$W/csi/csi.sock" -workload-api-socket-dir "$W/public" >>"$W/csi.log" 2>&1 &
	pids+=("$!")
	until_ok 10 healthy && is "$(publish)" '{}'
	"$AGENT" api fetch x509 -socketPath "$W/pods/$POD/mount/agent.sock" | grep -q "spiffe://$TD/web" || die 'no identity by the volume'
	# The agent's restart is not noticed: it is the folder that is mounted, not the socket.
	kill "$APID"
	until_ok 5 gone "$APID"
	"$AGENT" run -config "$W/agent.conf" >>"$W/agent.log" 2>&1 &
	pids+=("$!")
	until_ok 10 "$AGENT" api fetch x509 -socketPath "$W/pods/$POD/mount/agent.sock"
	is "$(unpublish)" '{}'
}

refused_start() {
	! "$AGENT" csi -workload-api-socket-dir "$W" >"$W/say" 2>&1 || return 1
	grep -q 'node ID is required' "$W/say" || die "$(cat "$W/say")"
	! "$AGENT" csi -node-id n >"$W/say" 2>&1 || return 1
	grep -q 'workload API socket directory is required' "$W/say" || die "$(cat "$W/say")"
}

t 'who the driver is' identity
t 'it registers itself with the kubelet' registration
t 'volumes come and go, as often as asked' volumes
t 'what is refused, and its words' refusals
t 'restarts of the driver' restarts
t 'the socket folder deleted' source_deleted
t 'many pods at once, each asked twice' many
t 'an identity by the volume, over an agent restart' with_agent
t 'what is missing at the start' refused_start
finish
