#!/bin/bash
# NodeAttestor k8s_psat and BundlePublisher k8s_configmap against a real kube-apiserver. There is no kubelet: nodes and pods are objects
# alone, and the tokens that a kubelet would mount are asked for by kubectl.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/e2e/kube.inc
. tests/e2e/kube.inc

# An API server that a test has started again goes on after it.
trap 'kube_end apiserver -KILL; cleanup' EXIT
again() { KUBE_KEEP=1 "$@"; }

need() { kube_need etcd kube-apiserver kubectl; }

# cluster: what all tests share: namespace, accounts, a node, RBAC at its least for the server's user
cluster() {
	kubectl apply -f - <<-'EOF'
		apiVersion: v1
		kind: Namespace
		metadata: {name: spire}
		---
		apiVersion: v1
		kind: ServiceAccount
		metadata: {name: agent, namespace: spire}
		---
		apiVersion: v1
		kind: ServiceAccount
		metadata: {name: other, namespace: spire}
		---
		apiVersion: v1
		kind: ServiceAccount
		metadata: {name: server, namespace: spire}
		---
		apiVersion: v1
		kind: Node
		metadata: {name: n-1, labels: {zone: z1}}
		---
		apiVersion: rbac.authorization.k8s.io/v1
		kind: ClusterRole
		metadata: {name: spire-server}
		rules:
		- {apiGroups: [""], resources: [pods, nodes], verbs: [get]}
		- {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
		---
		apiVersion: rbac.authorization.k8s.io/v1
		kind: ClusterRoleBinding
		metadata: {name: spire-server}
		subjects:
		- {kind: User, name: spire-server, apiGroup: rbac.authorization.k8s.io}
		- {kind: ServiceAccount, name: server, namespace: spire}
		roleRef: {kind: ClusterRole, name: spire-server, apiGroup: rbac.authorization.k8s.io}
		---
		apiVersion: rbac.authorization.k8s.io/v1
		kind: Role
		metadata: {name: spire-bundle, namespace: spire}
		rules:
		- {apiGroups: [""], resources: [configmaps], resourceNames: [spire-bundle], verbs: [get, create, patch]}
		---
		apiVersion: rbac.authorization.k8s.io/v1
		kind: RoleBinding
		metadata: {name: spire-bundle, namespace: spire}
		subjects: [{kind: User, name: spire-server, apiGroup: rbac.authorization.k8s.io}]
		roleRef: {kind: Role, name: spire-bundle, apiGroup: rbac.authorization.k8s.io}
	EOF
	kube_user server /CN=spire-server
}

# pod NAME [ACCOUNT]: on node n-1; its UID is in POD_UID
pod() {
	kubectl apply -f - >/dev/null <<-EOF || return 1
		apiVersion: v1
		kind: Pod
		metadata: {name: $1, namespace: spire, labels: {app: agent}}
		spec:
		  nodeName: n-1
		  serviceAccountName: ${2:-agent}
		  containers: [{name: c, image: none}]
	EOF
	POD_UID=$(kubectl -n spire get pod "$1" -o 'jsonpath={.metadata.uid}')
}

# pod_token NAME [ACCOUNT] [AUDIENCE]: as the kubelet would mount it, in $W/token
pod_token() {
	kube_token spire "${2:-agent}" "${3:-spire-server}" --bound-object-kind Pod --bound-object-name "$1" \
		--bound-object-uid "$POD_UID" >"$W/token"
}

# psat_conf [LINES-OF-CLUSTER] [MORE-CLUSTERS] [MORE-PLUGINS]
psat_conf() {
	server_conf "" "NodeAttestor \"k8s_psat\" {
		plugin_data {
			clusters = {
				\"one\" = {
					service_account_allow_list = [\"spire:agent\"]
					${1-kube_config_file = \"$KUBE/server.kubeconfig\"}
				}
				${2:-}
			}
		}
	}
	${3:-}"
}

psat_agent_conf() {
	agent_conf "" "NodeAttestor \"k8s_psat\" {
		plugin_data {
			cluster = \"${1:-one}\"
			token_path = \"$W/token\"
		}
	}"
}

# logged TEXT: by the agent, whose log has \" for "
logged() { sed 's/\\"/"/g' "$W/agent.log" | grep -qF "$1"; }

# refused TEXT: the agent does not come up, and its log says why
refused() {
	mkdir -p "$W/agent"
	s bundle show >"$W/bundle.pem"
	"$AGENT" run -config "$W/agent.conf" >>"$W/agent.log" 2>&1 &
	local pid=$!
	pids+=("$pid")
	until_ok 10 logged "$1" || { tail -n 3 "$W/agent.log"; return 1; }
	kill -9 "$pid" 2>/dev/null
	s agent list | grep -q "^No attested agents" || { s agent list; return 1; }
}

attests() {
	need
	pod agent-1 && pod_token agent-1 && psat_conf "kube_config_file = \"$KUBE/server.kubeconfig\"
		allowed_node_label_keys = [\"zone\"]
		allowed_pod_label_keys = [\"app\"]" && server_start || return 1
	psat_agent_conf
	agent_start || return 1
	local node id
	node=$(kubectl get node n-1 -o 'jsonpath={.metadata.uid}')
	id=spiffe://$TD/spire/agent/k8s_psat/one/$node
	s agent show -spiffeID "$id" >"$W/show" || { s agent list; return 1; }
	for x in cluster:one agent_ns:spire agent_sa:agent agent_pod_name:agent-1 "agent_pod_uid:$POD_UID" agent_node_ip: \
		agent_node_name:n-1 "agent_node_uid:$node" agent_node_label:zone:z1 agent_pod_label:app:agent; do
		grep -qF "k8s_psat:$x" "$W/show" || { cat "$W/show"; die "no selector $x"; }
	done
	# again, as often as it likes, whether the API server was restarted meanwhile or not
	kill -9 "$APID"
	rm -rf "$W/agent" "$W/public" "$W/private"
	again kube_restart && agent_start && pod_token agent-1 || return 1
	[ "$(s agent list | grep -c 'SPIFFE ID')" = 1 ]
}

by_pod_uid() {
	need
	pod agent-1 && pod_token agent-1 && psat_conf "kube_config_file = \"$KUBE/server.kubeconfig\"
		use_pod_uid_for_agent_id = true" && server_start || return 1
	psat_agent_conf
	agent_start && s agent show -spiffeID "spiffe://$TD/spire/agent/k8s_psat/one/pod/$POD_UID"
}

other_audience() {
	need
	pod agent-1 && pod_token agent-1 agent someone-else && psat_conf && server_start || return 1
	psat_agent_conf
	refused 'unable to validate token with TokenReview API for cluster "one": token review API response contains an error: '
}

other_account() {
	need
	pod agent-2 other && pod_token agent-2 other && psat_conf && server_start || return 1
	psat_agent_conf
	refused '"spire:other" is not an allowed service account for cluster "one"'
}

no_pod_token() {
	need
	kube_token spire agent spire-server >"$W/token" && psat_conf && server_start || return 1
	psat_agent_conf
	refused 'failed to get pod name from token review status for cluster "one": missing pod name'
}

# The API server remembers its review for ten seconds, but the pod is another one.
pod_is_gone() {
	need
	pod agent-3 && pod_token agent-3 && psat_conf && server_start || return 1
	psat_agent_conf
	agent_start || return 1
	local id
	id=$(s agent list | sed -n 's/.*SPIFFE ID *: //p')
	kill -9 "$APID"
	s agent evict -spiffeID "$id" && kubectl -n spire delete pod agent-3 --force --grace-period=0 && pod agent-3 || return 1
	rm -rf "$W/agent" "$W/public" "$W/private" "$W/agent.log"
	refused 'cluster "one": ' && { logged 'pod UID mismatch for pod "agent-3"' || logged 'contains an error'; }
}

unknown_cluster_then_reload() {
	need
	pod agent-1 && pod_token agent-1 && psat_conf && server_start || return 1
	psat_agent_conf two
	refused 'not configured for cluster "two"' || return 1
	psat_conf "kube_config_file = \"$KUBE/server.kubeconfig\"" "\"two\" = {
		service_account_allow_list = [\"spire:agent\"]
		kube_config_file = \"$KUBE/server.kubeconfig\"
	}"
	kill -HUP "$SPID"
	until_ok 10 grep -q 'read again' "$W/server.log" && agent_start && s agent list | grep -q /k8s_psat/two/
}

# As in a pod: the server's own account, by what is mounted there.
in_cluster() {
	need
	[ "$(id -u)" = 0 ] || skip "not root"
	unshare -m true 2>/dev/null || skip "no mount namespaces here"
	local dir=$W/sa where=/var/run/secrets/kubernetes.io/serviceaccount
	mkdir -p "$dir"
	kube_token spire server https://kubernetes.default.svc.cluster.local >"$dir/token" && cp "$KUBE_CA" "$dir/ca.crt" || return 1
	printf spire >"$dir/namespace"
	pod agent-1 && pod_token agent-1 && psat_conf '' || return 1
	KUBERNETES_SERVICE_HOST=127.0.0.1 KUBERNETES_SERVICE_PORT=$KUBE_PORT unshare -m --propagation private sh -c \
		"mount -t tmpfs none /var/run && mkdir -p $where && cp $dir/* $where && exec $SERVER run -config $W/server.conf" >"$W/server.log" 2>&1 &
	SPID=$!
	pids+=("$SPID")
	until_ok 10 "$SERVER" healthcheck -socketPath "$W/server.sock" || return 1
	psat_agent_conf
	agent_start && s agent list | grep -q /k8s_psat/one/
}

published() { kubectl -n spire get configmap spire-bundle -o go-template="{{index .data \"$1\"}}"; }
same_roots() { s bundle show >"$W/want.pem" && published bundle.crt >"$W/got.pem" && diff <(grep -v '^$' "$W/want.pem") <(grep -v '^$' "$W/got.pem"); }
roots() { grep -c BEGIN "$W/got.pem"; }

authority() { "$SERVER" localauthority "$@" -socketPath "$W/server.sock"; }
keys_are() { published bundle.json | jq -e "(.keys | length) == $1"; }

publisher() {
	printf 'BundlePublisher "k8s_configmap" {
		plugin_data {
			clusters = {
				"pem" = {
					namespace = "spire"
					configmap_name = "spire-bundle"
					configmap_key = "bundle.crt"
					format = "pem"
					kubeconfig_path = "%s"
				}
				"json" = {
					namespace = "spire"
					configmap_name = "spire-bundle"
					configmap_key = "bundle.json"
					format = "spiffe"
					kubeconfig_path = "%s"
					refresh_hint = "5m"
				}
			}
		}
	}' "$KUBE/server.kubeconfig" "$KUBE/server.kubeconfig"
}

# It is made where there is none, follows a rotation, is taken back, and comes when the API server is there again.
bundle_follows() {
	need
	kubectl -n spire delete configmap spire-bundle --ignore-not-found
	psat_conf "kube_config_file = \"$KUBE/server.kubeconfig\"" '' "$(publisher)" && server_start && until_ok 20 same_roots || return 1
	[ "$(roots)" = 1 ] || die "$(roots) roots"
	published bundle.json | jq -e '.spiffe_refresh_hint == 300 and (.keys | length) == 2' || return 1
	kubectl -n spire patch configmap spire-bundle -p '{"data":{"other":"mine","bundle.crt":"edited"}}' || return 1
	authority x509 prepare && until_ok 20 same_roots || return 1
	[ "$(roots)" = 2 ] || die "$(roots) roots after the rotation"
	[ "$(published other)" = mine ] || die "another key was touched"
	kube_end apiserver
	authority jwt prepare && until_ok 10 grep -q 'Failed to publish bundle' "$W/server.log" && again kube_apiserver || return 1
	until_ok 20 keys_are 4
}

bundle_refused() {
	need
	psat_conf "kube_config_file = \"$KUBE/server.kubeconfig\"" '' "$(publisher | sed 's/"spire-bundle"/"forbidden"/')" && server_start || return 1
	until_ok 10 grep -q 'failed to apply ConfigMap for cluster .*configmaps .*forbidden.* is forbidden' "$W/server.log"
}

notifier() {
	need
	kubectl -n spire delete configmap spire-bundle --ignore-not-found
	psat_conf "kube_config_file = \"$KUBE/server.kubeconfig\"" '' \
		"Notifier \"k8sbundle\" { plugin_data { kube_config_file_path = \"$KUBE/server.kubeconfig\" } }" && server_start && until_ok 20 same_roots
}

if kube_have etcd kube-apiserver kubectl; then
	if ! { kube_up && cluster; } >"$W/up" 2>&1; then
		tail -n 20 "$W/up"
		failed=1
		finish
	fi
fi
t 'a pod on a node attests its agent, and again after an API server restart' attests
t 'the agent by the UID of its pod' by_pod_uid
t 'a token for another audience' other_audience
t 'a token of another service account' other_account
t 'a token that is bound to no pod' no_pod_token
t 'a token of a pod that is gone' pod_is_gone
t 'a cluster is added without a restart' unknown_cluster_then_reload
t 'the server as a pod of the cluster' in_cluster
t 'the bundle in a ConfigMap follows the CA' bundle_follows
t 'a ConfigMap that the server may not write' bundle_refused
t 'Notifier k8sbundle' notifier
finish
