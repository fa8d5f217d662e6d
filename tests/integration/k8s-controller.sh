#!/bin/bash
# The controller against a real kube-apiserver: objects go in by kubectl, entries come out. Nodes and pods are objects only; no kubelet.
source "$(dirname "$0")/lib.sh"
. tests/e2e/kube.inc

need() { kube_need etcd kube-apiserver kubectl; }
kube_have etcd kube-apiserver kubectl && kube_up && kubectl apply -f deploy/k8s/base/crds >/dev/null

# serve [LINES-OF-THE-CONTROLLER-BLOCK]: a server with the controller; SOCK and its folder under $W
serve() {
	server_conf
	cat >>"$W/server.conf" <<-EOT
		controller {
			kubeconfig_path = "${CONTROLLER_KUBECONFIG:-$KUBECONFIG}"
			cluster_name = "demo"
			cluster_domain = "cluster.local"
			${1:-}
		}
	EOT
	start_controller
}

start_controller() {
	"$SERVER" run -config "$W/server.conf" >>"$W/server.log" 2>&1 &
	SERVER_PID=$!
	pids+=("$SERVER_PID")
	until_ok 20 "$SERVER" healthcheck -socketPath "$W/server.sock"
}

stop_controller() {
	kill "$SERVER_PID"
	until_ok 10 gone "$SERVER_PID"
}

entries() { "$SERVER" entry show -socketPath "$W/server.sock" -output json "$@"; }
n_entries() { [ "$(entries | python3 -c 'import json,sys; print(len(json.load(sys.stdin)["entries"]))')" = "$1" ]; }
has_entry() { entries | grep -q "$1"; }
no_entry() { ! has_entry "$1"; }

# shows KIND NAME JSONPATH VALUE
shows() { [ "$(kubectl get "$1" "$2" -o "jsonpath={$3}")" = "$4" ]; }

a_node() { kubectl create -f - <<<"{apiVersion: v1, kind: Node, metadata: {name: $1}}"; }

# a_pod NAMESPACE NAME NODE [LABELS]
a_pod() {
	kubectl create -f - <<-EOT
		apiVersion: v1
		kind: Pod
		metadata: {name: $2, namespace: $1, labels: {${4:-}}}
		spec:
		  serviceAccountName: default
		  automountServiceAccountToken: false
		  ${3:+nodeName: $3}
		  containers: [{name: c, image: none}]
	EOT
}

uid() { kubectl get "$1" ${2:+-n "$2"} "$3" -o 'jsonpath={.metadata.uid}'; }

# Each test begins with an empty cluster but for one node.
clean() {
	kubectl delete clusterspiffeid,clusterstaticentry,clusterfederatedtrustdomain,node,endpointslice,event,lease --all >/dev/null
	kubectl delete pod --all --force --grace-period=0 >/dev/null 2>&1
	kubectl create -f - >/dev/null 2>&1 <<<"{apiVersion: v1, kind: ServiceAccount, metadata: {name: default}}"
	a_node n1 >/dev/null
}

by_account='
apiVersion: spire.spiffe.io/v1alpha1
kind: ClusterSPIFFEID
metadata: {name: by-account}
spec:
  spiffeIDTemplate: "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}"
'

lifecycle() {
	need
	clean
	kubectl apply -f - <<<"$by_account"
	a_pod default early n1
	serve
	until_ok 5 has_entry "pod-uid:$(uid pod default early)" || return 1
	has_entry "spire/agent/k8s_psat/demo/$(uid node '' n1)" || return 1
	a_pod default p1 n1 'app: web'
	until_ok 5 n_entries 2 || return 1
	"$SERVER" controller explain -socketPath "$W/server.sock" -pod default/p1 >"$W/why" || return 1
	grep -q 'by-account *: entry k8s\.' "$W/why" || { cat "$W/why"; return 1; }
	# An object that selects by label, and the label goes.
	kubectl apply -f - <<-EOT
		apiVersion: spire.spiffe.io/v1alpha1
		kind: ClusterSPIFFEID
		metadata: {name: web}
		spec:
		  spiffeIDTemplate: "spiffe://{{ .TrustDomain }}/web/{{ (index .PodSpec.Containers 0).Name }}"
		  podSelector: {matchLabels: {app: web}}
		  dnsNameTemplates: ["{{ .PodMeta.Name }}.{{ .ClusterDomain }}"]
		  ttl: 30m
	EOT
	until_ok 5 has_entry '"/web/c"' || return 1
	has_entry 'p1.cluster.local' || return 1
	kubectl label pod p1 app-
	until_ok 5 no_entry '"/web/c"' || return 1
	n_entries 2 || return 1
	kubectl label pod p1 app=web
	until_ok 5 n_entries 3 || return 1
	until_ok 5 shows clusterspiffeid web .status.stats.entriesToSet 1 || return 1
	kubectl delete pod p1 --force --grace-period=0
	until_ok 5 n_entries 1 || return 1
	kubectl delete clusterspiffeid by-account
	until_ok 5 n_entries 0 || return 1
	until_ok 5 shows clusterspiffeid web .status.stats.podsSelected 0
}

invalid() {
	need
	clean
	a_pod default p1 n1
	serve
	kubectl apply -f - <<-EOT
		apiVersion: spire.spiffe.io/v1alpha1
		kind: ClusterSPIFFEID
		metadata: {name: bad}
		spec: {spiffeIDTemplate: "spiffe://other.org/{{ .PodMeta.Name }}"}
	EOT
	kubectl apply -f - <<<"$by_account"
	until_ok 5 n_entries 1 || return 1
	until_ok 5 bash -c "$KUBE_BIN/kubectl get clusterspiffeid bad -o 'jsonpath={.status.conditions[0].message}' | grep 'expected trust domain'" || return 1
	until_ok 5 bash -c "$KUBE_BIN/kubectl get event -o yaml | grep 'reason: RenderFailed'" || return 1
	shows clusterspiffeid bad .status.stats.podEntryRenderFailures 1 || return 1
	# What the schema knows is refused by the API server already.
	! kubectl apply -f - <<-EOT || return 1
		apiVersion: spire.spiffe.io/v1alpha1
		kind: ClusterFederatedTrustDomain
		metadata: {name: bad}
		spec: {trustDomain: x.org, bundleEndpointURL: "https://x/", bundleEndpointProfile: {type: https_other}}
	EOT
	kubectl get clusterspiffeid by-account
}

static_and_federated() {
	need
	clean
	serve
	kubectl apply -f - <<-EOT
		apiVersion: spire.spiffe.io/v1alpha1
		kind: ClusterStaticEntry
		metadata: {name: db}
		spec:
		  spiffeID: spiffe://$TD/db
		  parentID: spiffe://$TD/spire/server
		  selectors: ["x509pop:subject:cn:db"]
		  x509SVIDTTL: 2h
		---
		apiVersion: spire.spiffe.io/v1alpha1
		kind: ClusterFederatedTrustDomain
		metadata: {name: peer}
		spec:
		  trustDomain: peer.org
		  bundleEndpointURL: https://127.0.0.1:1/bundle
		  bundleEndpointProfile: {type: https_web}
	EOT
	until_ok 5 has_entry '"/db"' || return 1
	until_ok 5 bash -c "$SERVER federation list -socketPath $W/server.sock | grep -q 127.0.0.1:1/bundle" || return 1
	until_ok 5 shows clusterstaticentry db .status.set true || return 1
	kubectl delete clusterstaticentry db
	kubectl delete clusterfederatedtrustdomain peer
	until_ok 5 n_entries 0 || return 1
	until_ok 5 bash -c "! $SERVER federation list -socketPath $W/server.sock | grep -q peer.org"
}

# Names of Services: by EndpointSlices, which are asked for when the first object wants them.
services() {
	need
	clean
	a_pod default p1 n1
	serve
	kubectl apply -f - <<<"$by_account  autoPopulateDNSNames: true"
	until_ok 5 n_entries 1 || return 1
	kubectl create -f - <<-EOT
		apiVersion: discovery.k8s.io/v1
		kind: EndpointSlice
		metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
		addressType: IPv4
		endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: p1, namespace: default, uid: $(uid pod default p1)}}]
		ports: []
	EOT
	until_ok 5 has_entry 'web.default.svc.cluster.local' || return 1
	kubectl delete endpointslice web-1
	until_ok 5 no_entry 'web.default'
}

# What went while the server was down goes when it is back; what was made by hand stays.
restart() {
	need
	clean
	kubectl apply -f - <<<"$by_account"
	a_pod default p1 n1
	a_pod default p2 n1
	serve
	until_ok 5 n_entries 2 || return 1
	"$SERVER" entry create -socketPath "$W/server.sock" -spiffeID "spiffe://$TD/hand" -parentID "spiffe://$TD/p" -selector a:b || return 1
	local id
	id=$(entries | grep -o '"id": *"k8s[^"]*"' | sort)
	stop_controller
	kubectl delete pod p2 --force --grace-period=0
	a_pod default p3 n1
	start_controller
	until_ok 5 has_entry "pod-uid:$(uid pod default p3)" || return 1
	until_ok 5 n_entries 3 || return 1
	has_entry '"/hand"' || return 1
	# The entry of p1 is the same one.
	[ "$(comm -12 <(echo "$id") <(entries | grep -o '"id": *"k8s[^"]*"' | sort) | wc -l)" = 1 ]
}

# The API server goes and comes back; then the history is cut, so that a watch cannot go on where it was.
api_restart() {
	need
	clean
	kubectl apply -f - <<<"$by_account"
	a_pod default p1 n1
	serve
	until_ok 5 n_entries 1 || return 1
	kube_end apiserver
	sleep 0.5
	n_entries 1 || return 1
	kube_apiserver
	a_pod default p2 n1
	until_ok 15 n_entries 2 || return 1
	kill -STOP "$SERVER_PID"
	kubectl delete pod p1 --force --grace-period=0
	a_pod default p3 n1
	local rev
	rev=$(kubectl get --raw '/api/v1/pods?limit=1' | python3 -c 'import json,sys; print(json.load(sys.stdin)["metadata"]["resourceVersion"])')
	if command -v etcdctl >/dev/null; then
		ETCDCTL_API=3 etcdctl --endpoints "http://127.0.0.1:$ETCD_PORT" compact "$rev"
	fi
	kube_end apiserver
	kube_apiserver
	kill -CONT "$SERVER_PID"
	until_ok 20 has_entry "pod-uid:$(uid pod default p3)" || return 1
	until_ok 5 n_entries 2
}

# Two servers with a database each and one lease: one writes; when it goes, so does the other's turn begin.
lease() {
	need
	clean
	kubectl apply -f - <<<"$by_account"
	a_pod default p1 n1
	local block='leader_election { leader_elect = true lease_duration = "3s" renew_deadline = "2s" retry_period = "200ms" resource_namespace = "default" }'
	serve "$block"
	until_ok 5 n_entries 1 || return 1
	local first=$W
	W=$first/second
	mkdir "$W"
	unset SPORT
	first_pid=$SERVER_PID
	serve "$block"
	sleep 1
	n_entries 0 || return 1
	kubectl get lease assay-controller -o 'jsonpath={.spec.holderIdentity}' | grep -q . || return 1
	# Given back at once by one that stops …
	kill "$first_pid"
	until_ok 10 gone "$first_pid"
	until_ok 2 n_entries 1 || return 1
	# … and taken over from one that was killed, after the lease's time.
	local second_pid=$SERVER_PID second=$W
	W=$first
	start_controller
	sleep 0.5
	a_pod default p2 n1
	sleep 0.5
	n_entries 1 || return 1
	kill -9 "$second_pid"
	until_ok 10 n_entries 2 || return 1
	rm -rf "$second"
}

# An account without the rights is told of, and not much more.
forbidden() {
	need
	clean
	kube_user nobody /CN=nobody
	CONTROLLER_KUBECONFIG=$KUBE/nobody.kubeconfig serve
	until_ok 5 grep -q 'cannot watch.*clusterspiffeids' "$W/server.log" || return 1
	[ "$(grep -c 'cannot watch' "$W/server.log")" -lt 20 ]
}

# The time from a pod's creation (as kubectl returns) to its entry; and within the server, by its own metric.
speed() {
	need
	clean
	kubectl apply -f - <<<"$by_account"
	serve
	until_ok 5 grep -q 'synced.*Pod' "$W/server.log" || return 1
	for i in 1 2 3 4 5; do
		a_pod default "s$i" n1
	done
	until_ok 5 n_entries 5
}

t 'pods, labels, objects come and go' lifecycle
t 'an invalid object: status, event, the others go on' invalid
t 'ClusterStaticEntry, ClusterFederatedTrustDomain' static_and_federated
t 'names of Services' services
t 'the server restarts' restart
t 'two servers, one lease' lease
t 'without rights' forbidden
t 'five pods' speed
# Last, as the API server that it starts ends with it.
t 'the API server restarts, its history is cut' api_restart
finish
