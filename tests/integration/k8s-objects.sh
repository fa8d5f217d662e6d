#!/bin/bash
# What WorkloadAttestor k8s asks a real kube-apiserver: the labels of namespaces, objects for brokers.
source "$(dirname "$0")/lib.sh"
. tests/integration/k8s-workload.inc
. tests/e2e/kube.inc

# By a real kube-apiserver, with no more rights than the manual names.
namespace_labels() {
	need
	kube_need etcd kube-apiserver kubectl
	kube_up || return 1
	local admin=$KUBECONFIG
	kubectl create namespace shop >/dev/null && kubectl label namespace shop team=blue >/dev/null || return 1
	kube_user agent /CN=agent || return 1
	all_up 'enable_namespace_labels = true' || return 1
	pod web shop $uid1 $id1
	entry blue k8s:ns-label:team:blue k8s:ns:shop >/dev/null && entry red k8s:ns-label:team:red >/dev/null || return 1
	# no right, no labels, and so no selectors at all
	kill "$APID" && until_ok 10 gone "$APID"
	export KUBECONFIG=$KUBE/agent.kubeconfig
	agent_start || return 1
	LIMIT=2 pod_fetch $uid1 $id1 >"$W/o" 2>&1 && return 1
	grep -q 'unable to get namespace labels for \\"shop\\": unable to get namespace \\"shop\\": namespaces \\"shop\\" is forbidden' "$W/agent.log" || return 1
	KUBECONFIG=$admin kubectl create clusterrole ns --verb=get,list,watch --resource=namespaces >/dev/null &&
		KUBECONFIG=$admin kubectl create clusterrolebinding ns --clusterrole=ns --user=agent >/dev/null || return 1
	until_ok 5 pod_fetch $uid1 $id1 && pod_fetch $uid1 $id1 >"$W/o" && grep -q "spiffe://$TD/blue" "$W/o" || return 1
	KUBECONFIG=$admin kubectl label --overwrite namespace shop team=red >/dev/null
	sleep 0.6
	pod_fetch $uid1 $id1 >"$W/o" && grep -q "spiffe://$TD/red" "$W/o" && ! grep -q "spiffe://$TD/blue" "$W/o" || return 1
	# the same by a watch
	k8s_conf 'enable_namespace_labels = true
	experimental { api_server { cache { enabled = true } } }'
	kill "$APID" && until_ok 10 gone "$APID" && agent_start && pod_fetch $uid1 $id1 | grep -q "spiffe://$TD/red" || return 1
	KUBECONFIG=$admin kubectl label --overwrite namespace shop team=blue >/dev/null
	sleep 0.6
	pod_fetch $uid1 $id1 | grep -q "spiffe://$TD/blue"
}

# broker ARGUMENTS…: what it is told
broker() { timeout 25 "$TOOLS/broker" "$BPORT" "$W/svid.0.pem" "$W/svid.0.key" "$@"; }
says() { # WANT COMMAND…
	local expected=$1 answer
	shift
	answer=$("$@" 2>&1)
	[[ $answer == *"$expected"* ]] || die "$*: not \"$expected\" but \"$answer\""
}

# Kubernetes objects of a real API server, for a broker that its authorizer knows.
brokers() {
	need
	kube_need etcd kube-apiserver kubectl
	kube_up || return 1
	kubectl create namespace shop >/dev/null && kubectl -n shop create serviceaccount web >/dev/null &&
		kubectl -n shop create deployment web --image=x >/dev/null || return 1
	BPORT=$(free_port)
	agent_extra="experimental { broker {
		bind_address = \"127.0.0.1:$BPORT\"
		brokers = [ { id = \"spiffe://$TD/mesh\", allowed_reference_types = [
			{ type_url = \"type.googleapis.com/spiffe.broker.WorkloadPIDReference\", allow_over_tcp = true },
			{ type_url = \"type.googleapis.com/spiffe.broker.KubernetesObjectReference\", allow_over_tcp = true } ] } ] } }" all_up 'experimental { broker {
		access_policy = "enforced"
		brokers = [ { id = "spiffe://example.org/mesh", pod_reference_scope = "cluster" } ] } }' || return 1
	pod web shop $uid1 $id1
	entry mesh "unix:uid:$(id -u)" >/dev/null && until_ok 5 fetch -write "$W" || return 1
	entry pod k8s:ns:shop k8s:sa:web-account >/dev/null && entry deployment k8s:kind:Deployment k8s:key:shop/web k8s:label:app:web >/dev/null &&
		entry ns k8s:resource:namespaces.core k8s:name:shop >/dev/null && entry remote k8s:pod-name:remote k8s:sa:web >/dev/null || return 1
	sleep 0.5
	# nobody has said yet that it may
	says 'PermissionDenied' broker object pods core shop web ''
	says 'does not allow the broker to use impersonate-via-spire' broker object deployments apps shop web ''
	kubectl create clusterrole impersonate --verb=impersonate-via-spire --resource=pods,deployments.apps,namespaces >/dev/null &&
		kubectl create clusterrolebinding mesh --clusterrole=impersonate --user="spiffe://$TD/mesh" >/dev/null || return 1
	until_ok 5 sh -c "$(declare -f broker); TOOLS=$TOOLS BPORT=$BPORT W=$W; broker object pods core shop web ''" || broker object pods core shop web ''
	says "spiffe://$TD/pod" broker object pods core shop web ''
	says "spiffe://$TD/pod" broker object pods core '' '' $uid1
	says 'has UID' broker object pods core shop web $uid2
	says "spiffe://$TD/deployment" broker object deployments apps shop web ''
	says "spiffe://$TD/deployment" broker object deployments apps '' '' "$(kubectl -n shop get deployment web -o jsonpath='{.metadata.uid}')"
	says "spiffe://$TD/ns" broker object namespaces core '' shop ''
	says 'NotFound' broker object deployments apps shop none ''
	says 'InvalidArgument' broker object deployments apps '' web ''
	says 'unknown Kubernetes resource things.apps: no matches for apps/, Resource=things' broker object things apps shop x ''
	# a pod that this node's kubelet does not know
	kubectl -n shop apply -f - >/dev/null <<-EOF
		apiVersion: v1
		kind: Pod
		metadata: {name: remote, labels: {app: x}}
		spec: {serviceAccountName: web, automountServiceAccountToken: false, nodeName: elsewhere, containers: [{name: c, image: x}]}
	EOF
	says "spiffe://$TD/remote" broker object pods core shop remote ''
	says "spiffe://$TD/remote" broker object pods core '' '' "$(kubectl -n shop get pod remote -o jsonpath='{.metadata.uid}')"
	# a process of a pod, and one of none
	sleeper $uid1 $id1 || return 1
	says "spiffe://$TD/pod" broker pid "$SLEEPER"
	kubectl delete clusterrolebinding mesh >/dev/null
	until_ok 5 sh -c "$(declare -f broker); TOOLS=$TOOLS BPORT=$BPORT W=$W; ! broker object pods core shop web ''"
	says "spiffe://$TD/mesh" broker pid $$
}

t 'labels of namespaces' namespace_labels
t 'objects for brokers' brokers
finish
