#!/bin/bash
# Watches of lib/kube against a real kube-apiserver and etcd: pages, restarts, and versions that are gone.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/e2e/kube.inc
. tests/e2e/kube.inc

trap 'kube_end apiserver -KILL; cleanup' EXIT
again() { KUBE_KEEP=1 "$@"; }
need() { kube_need etcd kube-apiserver kubectl; }

# watch [PATH]: kubewatch in the background; what it says is in $W/events
watch() {
	"$TOOLS/kubewatch" "$KUBE/admin.kubeconfig" "${1:-/api/v1/namespaces/w/configmaps?labelSelector=w}" >>"$W/events" 2>&1 &
	WPID=$!
	pids+=("$WPID")
	until_ok 30 grep -qx synced "$W/events"
}

saw() { until_ok "${2:-30}" grep -qxF -- "$1" "$W/events"; }
forget() { : >"$W/events"; }
map() { kubectl -n w create configmap "$1" --dry-run=client -o yaml | sed 's/^metadata:/metadata:\n  labels: {w: x}/' | kubectl apply -f - >/dev/null; }
start() {
	kubectl create namespace w >/dev/null 2>&1
	kubectl -n w delete configmap -l w >/dev/null 2>&1
	map a && map b && watch && saw '+ a' && saw '+ b'
}

events() {
	need
	start && forget && map c && saw '+ c' && kubectl -n w label configmap c x=y && saw '* c' && kubectl -n w delete configmap c && saw '- c' || return 1
	kill "$WPID" && until_ok 5 gone "$WPID"
}

# More objects than a page has.
pages() {
	need
	kubectl create namespace many >/dev/null 2>&1
	for i in $(seq 1200); do
		printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m-%s, namespace: many}\n---\n' "$i"
	done | kubectl create --validate=false -f - >/dev/null || return 1
	watch '/api/v1/namespaces/many/configmaps' || return 1
	[ "$(grep -c '^+ m-' "$W/events")" = 1200 ] || die "$(grep -c '^+ m-' "$W/events") of 1200"
}

# The stream goes on where it was: nothing is listed anew.
restart() {
	need
	start && again kube_restart && map d && saw '+ d' 40 && [ "$(grep -cx synced "$W/events")" = 1 ]
}

# While it was away its version was compacted: it lists anew and finds what was changed, made and deleted.
compacted() {
	need
	start || return 1
	kill -STOP "$WPID"
	kube_end apiserver -KILL
	again kube_apiserver || return 1
	map e && kubectl -n w label configmap a x=y && kubectl -n w delete configmap b >/dev/null || return 1
	kube_end apiserver -KILL
	local revision
	revision=$(curl -s "http://127.0.0.1:$ETCD_PORT/v3/kv/range" -d '{"key":"AA=="}' | jq -r .header.revision)
	curl -s "http://127.0.0.1:$ETCD_PORT/v3/kv/compaction" -d "{\"revision\":\"$revision\",\"physical\":true}" >/dev/null
	again kube_apiserver || return 1
	forget
	kill -CONT "$WPID"
	saw synced 40 || { cat "$W/events"; return 1; }
	saw '+ e' && saw '* a' && saw '- b' && map f && saw '+ f'
}

if kube_have etcd kube-apiserver kubectl; then
	if ! kube_up >"$W/up" 2>&1; then
		tail -n 20 "$W/up"
		failed=1
		finish
	fi
fi
t 'objects come, change and go' events
t 'a list of several pages' pages
t 'the API server is restarted' restart
t 'the version is gone from etcd' compacted
finish
