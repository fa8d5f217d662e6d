#!/bin/bash
# deploy/k8s as a real API server takes it: schemas, Pod Security, and rights that suffice and are no more than that.
source "$(dirname "$0")/lib.sh"
. tests/e2e/kube.inc
K8S=deploy/k8s
SERVER_SA=system:serviceaccount:assay-server:assay-server
AGENT_SA=system:serviceaccount:assay-system:assay-agent

need() {
	kube_need etcd kube-apiserver kubectl
	[ -n "${KUBECONFIG:-}" ] || die 'the control plane did not start'
}

applied() {
	need
	kubectl apply -k "$K8S/base" || return 1
	# Whether a StatefulSet has a claim cannot be changed.
	kubectl -n assay-server delete statefulset assay-server --cascade=background --wait=false && kubectl apply -k "$K8S/overlays/demo" || return 1
	kubectl -n assay-server delete statefulset assay-server --cascade=background --wait=false
}

# Whatever is combined, it is one valid set.
components() {
	need
	kubectl apply -k "$K8S/base" >/dev/null || return 1
	local c
	mkdir "$K8S/test-$$"
	trap 'rm -rf "$K8S/test-$$"' EXIT
	for c in "$K8S"/components/*; do
		printf 'resources: [../base]\ncomponents: [../components/%s]\n' "$(basename "$c")" >"$K8S/test-$$/kustomization.yaml"
		kubectl kustomize "$K8S/test-$$" >"$W/with.yaml" || die "$c"
		! kubectl kustomize "$K8S/base" | cmp -s "$W/with.yaml" - || die "$c changes nothing"
		kubectl apply --dry-run=server -f "$W/with.yaml" >/dev/null || die "$c"
	done
}

# pod_of KIND NAME NAMESPACE: the pod that a controller would make
pod_of() {
	kubectl -n "$3" get "$1" "$2" -o json | jq '{apiVersion: "v1", kind: "Pod", metadata: {name: "try", namespace: .metadata.namespace},
		spec: (.spec.template.spec | .volumes += [{name: "data", emptyDir: {}}] | .volumes |= unique_by(.name))}' |
		kubectl create --dry-run=server -f -
}

pod_security() {
	need
	kubectl apply -k "$K8S/base" >/dev/null || return 1
	pod_of statefulset assay-server assay-server || return 1
	pod_of daemonset assay-agent assay-system || return 1
	# The workload's example, under the strictest rules.
	kubectl create namespace strict && kubectl label namespace strict pod-security.kubernetes.io/enforce=restricted &&
		kubectl -n strict create serviceaccount default && kubectl -n strict create --dry-run=server -f "$K8S/examples/pod.yaml"
}

may() { [ "$(kubectl auth can-i --as "$1" "${@:2}" 2>/dev/null)" = yes ] || die "$1 may not: ${*:2}"; }
may_not() { [ "$(kubectl auth can-i --as "$1" "${@:2}" 2>/dev/null)" != yes ] || die "$1 may: ${*:2}"; }

rights() {
	need
	local sa verb what
	kubectl apply -k "$K8S/base" >/dev/null || return 1
	may $SERVER_SA create tokenreviews.authentication.k8s.io
	may $SERVER_SA get pods -A
	may $SERVER_SA get nodes
	may $SERVER_SA patch configmaps/assay-bundle -n assay-system
	local kind
	for kind in clusterspiffeids clusterstaticentries clusterfederatedtrustdomains; do
		may $SERVER_SA watch $kind.spire.spiffe.io
		may $SERVER_SA patch $kind.spire.spiffe.io --subresource status
		for verb in create update patch delete; do may_not $SERVER_SA $verb $kind.spire.spiffe.io; done
	done
	may $SERVER_SA watch pods -A
	may $SERVER_SA create events -n default
	may_not $SERVER_SA create events -n assay-system
	may_not $SERVER_SA patch configmaps/other -n assay-system
	may_not $SERVER_SA list configmaps -n assay-system
	may_not $SERVER_SA patch configmaps/assay-bundle -n default
	may $AGENT_SA get nodes --subresource pods
	may_not $AGENT_SA get nodes --subresource proxy
	may_not $AGENT_SA get nodes
	for sa in $SERVER_SA $AGENT_SA; do
		for verb in get list create update delete; do
			may_not $sa $verb secrets -A
			may_not $sa $verb clusterroles.rbac.authorization.k8s.io
		done
		for what in pods/exec pods/attach deployments.apps; do may_not $sa create $what -A; done
		may_not $sa create pods -A
		may_not $sa delete pods -A
		may_not $sa create serviceaccounts/token -A
		may_not $sa impersonate users
	done
}

objects() {
	need
	kubectl apply -k "$K8S/base" >/dev/null || return 1
	kubectl wait --for condition=Established --timeout 10s crd/clusterspiffeids.spire.spiffe.io >/dev/null || return 1
	kubectl apply -f "$K8S/examples/clusterspiffeid.yaml" && kubectl get clusterspiffeid
}

# As the k8s_configmap publisher does it: by apply, whether it is there or not.
bundle_written() {
	need
	kubectl apply -k "$K8S/base" >/dev/null || return 1
	local what
	for what in first second; do
		printf '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "assay-bundle"}, "data": {"bundle.crt": "%s"}}' "$what" |
			kubectl -n assay-system apply --server-side --field-manager spire-bundlepublisher-k8s_configmap --as $SERVER_SA -f - || return 1
		[ "$(kubectl -n assay-system get configmap assay-bundle -o 'jsonpath={.data.bundle\.crt}')" = "$what" ] || return 1
	done
	# A later apply of the manifests leaves it.
	kubectl apply -k "$K8S/base" >/dev/null
	[ "$(kubectl -n assay-system get configmap assay-bundle -o 'jsonpath={.data.bundle\.crt}')" = second ]
}

# The projected token is one that the server's TokenReview accepts.
node_token() {
	need
	kubectl apply -k "$K8S/base" >/dev/null || return 1
	local token
	token=$(kube_token assay-system assay-agent spire-server) || return 1
	[ "$(jq -cn --arg t "$token" '{apiVersion: "authentication.k8s.io/v1", kind: "TokenReview", spec: {token: $t, audiences: ["spire-server"]}}' |
		kubectl create --validate=false --as $SERVER_SA -f - -o 'jsonpath={.status.user.username}')" = $AGENT_SA ]
}

if kube_have etcd kube-apiserver kubectl; then
	kube_up >"$W.up" 2>&1 || unset KUBECONFIG
	rm -f "$W.up"
fi
t 'base and demo overlay are taken' applied
t 'components' components
t 'Pod Security: server restricted, agent privileged, workload restricted' pod_security
t 'the example objects' objects
t 'rights that suffice, and no others' rights
t 'the trust bundle is written, and stays' bundle_written
t 'the node token' node_token
finish
