#!/bin/bash
# Attestation of processes in pods, by a stand-in kubelet (kubelet.py): selectors, waiting, trust, a kubelet that misbehaves.
source "$(dirname "$0")/lib.sh"
. tests/integration/k8s-workload.inc

selectors() {
	all_up || return 1
	local digest want got
	pod web shop $uid1 $id1 app=web tier=front 'odd/key=a:b'
	digest=registry.example.org/web@sha256:$(printf web | sha256sum | cut -d' ' -f1)
	want=$(sort <<-EOF
		sa:web-account
		ns:shop
		node-name:node-1
		pod-uid:$uid1
		pod-name:web
		pod-image-count:1
		pod-init-image-count:0
		pod-image:registry.example.org/web:1.2
		pod-image:$digest
		pod-label:app:web
		pod-label:tier:front
		pod-label:odd/key:a:b
		pod-owner:ReplicaSet:web-5d4f8b9c7
		pod-owner-uid:ReplicaSet:$(rev <<<$uid1)
		container-name:web
		container-image:registry.example.org/web:1.2
		container-image:$digest
	EOF
	)
	got=$(explain $uid1 $id1 | python3 -c 'import json, sys
for a in json.load(sys.stdin)["attestors"]:
    if a["name"] == "k8s":
        print("\n".join(sorted(s["value"] for s in a["selectors"])))' | sort)
	diff <(echo "$want") <(echo "$got") || return 1
	entry web k8s:ns:shop k8s:sa:web-account "k8s:container-image:$digest" >/dev/null && entry other k8s:ns:other >/dev/null || return 1
	until_ok 5 pod_fetch $uid1 $id1 || return 1
	pod_fetch $uid1 $id1 >"$W/o" && grep -q "spiffe://$TD/web" "$W/o" && ! grep -q "spiffe://$TD/other" "$W/o" || return 1
	# outside of pods there are no selectors, and so no such identity
	fetch >"$W/o" 2>&1 && return 1
	grep -q 'no identity issued' "$W/o"
}

kinds_of_containers() {
	all_up || return 1
	pod job shop $uid1 init:$id1 && pod app shop $uid2 debug:$id2
	entry init k8s:container-name:job-init k8s:pod-init-image-count:1 >/dev/null && entry debug k8s:container-name:app-debug k8s:pod-name:app >/dev/null || return 1
	until_ok 5 pod_fetch $uid1 $id1 && pod_fetch $uid1 $id1 | grep -q "spiffe://$TD/init" || return 1
	pod_fetch $uid2 $id2 | grep -q "spiffe://$TD/debug"
}

# The rest of the list does not come for 20 s, and nobody waits for it.
as_far_as_needed() {
	all_up || return 1
	pod web shop $uid1 $id1 && python3 tests/integration/kubelet.py fill "$W/k" 3
	entry web k8s:ns:shop >/dev/null && until_ok 5 pod_fetch $uid1 $id1 || return 1
	sleep 1.1
	pod a-web shop $uid1 $id1 && rm "$W/k/pods/web.json"
	mode stall a-web
	LIMIT=3 pod_fetch $uid1 $id1 >/dev/null || return 1
	until_ok 3 grep -q ' left$' "$W/k/requests" || { cat "$W/k/requests"; return 1; }
	mode cut a-web
	sleep 1.1
	LIMIT=3 pod_fetch $uid1 $id1 >/dev/null
}

waiting() {
	all_up || return 1
	pod web shop $uid1 $id1
	pod late shop $uid2 -
	entry web k8s:ns:shop k8s:container-name:web >/dev/null && entry late k8s:ns:shop k8s:container-name:late >/dev/null || return 1
	until_ok 5 pod_fetch $uid1 $id1 || return 1
	LIMIT=20 pod_fetch $uid2 $id2 >"$W/late" 2>&1 &
	local late=$! k
	sleeper $uid2 $id2 || return 1
	"$AGENT" explain -socketPath "$W/private/admin.sock" -output json -pid "$SLEEPER" >"$W/explained" &
	local explained=$!
	for k in 1 2 3 4 5 6; do # others are not held up
		sleep 0.3
		LIMIT=2 pod_fetch $uid1 $id1 >/dev/null || return 1
	done
	[ ! -s "$W/late" ] || die "answered too early: $(cat "$W/late")"
	pod late shop $uid2 $id2
	wait $late || return 1
	grep -q "spiffe://$TD/late" "$W/late" || return 1
	wait $explained
	grep -o '"waited_for": *"[^"]*"' "$W/explained" | tee "$W/o"
	grep -q "to know container ${id2:0:12} of pod $uid2: [0-9]* requests" "$W/o"
}

giving_up() {
	all_up 'max_poll_attempts = 3
	poll_retry_interval = "200ms"' || return 1
	pod web shop $uid1 $id1
	entry web k8s:ns:shop >/dev/null
	until_ok 5 pod_fetch $uid1 $id1 || return 1
	local from=$EPOCHREALTIME ms
	explain $uid2 $id2 >"$W/o" 2>&1
	ms=$(((${EPOCHREALTIME/./} - ${from/./}) / 1000))
	cat "$W/o"
	grep -q 'no selectors found after max poll attempts' "$W/o" || return 1
	[ $ms -ge 300 ] && [ $ms -lt 15000 ] || die "after $ms ms"
	# a caller that ends is not waited for any longer
	pod_fetch $uid2 $id3 >/dev/null 2>&1 &
	sleep 0.1
	kill $! 2>/dev/null
	pod_fetch $uid1 $id1 >/dev/null
}

freshness() {
	all_up || return 1
	pod web shop $uid1 $id1 stage=test
	entry web k8s:pod-label:stage:live >/dev/null && entry old k8s:pod-label:stage:test >/dev/null || return 1
	until_ok 5 pod_fetch $uid1 $id1 || return 1
	pod web shop $uid1 $id1 stage=live
	sleep 0.6
	pod_fetch $uid1 $id1 >"$W/o" && grep -q "spiffe://$TD/web" "$W/o" && ! grep -q "spiffe://$TD/old" "$W/o" || return 1
	rm "$W/k/pods/web.json"
	sleep 0.6
	LIMIT=1 pod_fetch $uid1 $id1 >"$W/o" 2>&1 && return 1
	return 0
}

not_ready() {
	all_up 'disable_container_selectors = true' || return 1
	pod web shop $uid1 -
	entry web k8s:ns:shop >/dev/null && entry no k8s:container-name:web >/dev/null || return 1
	until_ok 5 pod_fetch $uid1 $id1 || return 1
	pod web shop $uid1 $id1
	sleep 0.6
	pod_fetch $uid1 $id1 >"$W/o" && grep -q "spiffe://$TD/web" "$W/o" && ! grep -q "spiffe://$TD/no" "$W/o"
}

credentials() {
	all_up 'max_poll_attempts = 1
	reload_interval = "1s"' || return 1
	pod web shop $uid1 $id1
	entry web k8s:ns:shop >/dev/null && until_ok 5 pod_fetch $uid1 $id1 || return 1
	# both change at the kubelet: it refuses until the agent has read its file again
	cp "$W/k/token" "$W/k/token.agent"
	sed -i "s|$W/k/token\"|$W/k/token.agent\"|" "$W/agent.conf"
	kill "$APID" && until_ok 10 gone "$APID" && agent_start || return 1
	echo other-token >"$W/k/token"
	sleep 1
	pod_fetch $uid1 $id1 >"$W/o" 2>&1 && return 1
	grep -q 'unexpected status code on pods response: 401 Unauthorized' "$W/agent.log" || return 1
	echo other-token >"$W/k/token.agent"
	sleep 1.1
	until_ok 3 pod_fetch $uid1 $id1 && grep -q 'The kubelet answers again' "$W/agent.log"
}

trust() {
	all_up 'max_poll_attempts = 1' || return 1
	pod web shop $uid1 $id1
	entry web k8s:ns:shop >/dev/null && until_ok 5 pod_fetch $uid1 $id1 || return 1
	restart() {
		kill "$APID" && until_ok 10 gone "$APID" && : >"$W/agent.log" && agent_start
	}
	# with a node's name, the certificate must bear it
	k8s_conf 'max_poll_attempts = 1
	node_name = "localhost"'
	restart && pod_fetch $uid1 $id1 >/dev/null || return 1
	k8s_conf 'max_poll_attempts = 1
	node_name = "127.0.0.1"'
	restart && ! pod_fetch $uid1 $id1 >/dev/null 2>&1 && grep -q 'certificate is not valid for' "$W/agent.log" || return 1
	# another CA
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$W/k/x" -out "$W/k/other.pem" -days 2 -subj /CN=ca 2>/dev/null
	local lines="kubelet_secure_port = $KPORT
	token_path = \"$W/k/token\""
	k8s_conf 'max_poll_attempts = 1' "$lines
	kubelet_ca_path = \"$W/k/other.pem\""
	restart && ! pod_fetch $uid1 $id1 >/dev/null 2>&1 && grep -q 'unable to perform request: Get' "$W/agent.log" || return 1
	k8s_conf '' "$lines
	skip_kubelet_verification = true"
	restart && pod_fetch $uid1 $id1 >/dev/null || return 1
	# what is missing at the start, stops it
	k8s_conf '' "$lines
	kubelet_ca_path = \"$W/k/none\""
	kill "$APID" && until_ok 10 gone "$APID"
	timeout 5 "$AGENT" run -config "$W/agent.conf" >"$W/o" 2>&1 && return 1
	cat "$W/o"
	grep -q 'unable to load kubelet CA' "$W/o"
}

read_only_port() {
	need
	mkdir -p "$W/k/pods"
	KPORT=$(free_port)
	python3 tests/integration/kubelet.py serve "$W/k" "$KPORT" >>"$W/kubelet.log" 2>&1 &
	pids+=($!)
	server_start || return 1
	k8s_conf '' "kubelet_read_only_port = $KPORT"
	agent_start -joinToken "$(token)" || return 1
	pod web shop $uid1 $id1
	entry web k8s:ns:shop >/dev/null && until_ok 5 pod_fetch $uid1 $id1
}

rss() { awk '/VmRSS/ {print $2}' "/proc/$APID/status"; }

misbehaving() {
	all_up 'max_poll_attempts = 1' || return 1
	pod web shop $uid1 $id1
	entry web k8s:ns:shop >/dev/null && until_ok 5 pod_fetch $uid1 $id1 || return 1
	local m
	for m in nonsense many 'code 500' 'code 302'; do
		mode "$m"
		sleep 0.6
		pod_fetch $uid1 $id1 >/dev/null 2>&1 && die "an identity in mode $m"
	done
	grep -o 'error="[^"]*' "$W/agent.log" | sort -u
	grep -q 'unable to parse kubelet response: cannot parse JSON' "$W/agent.log" &&
		grep -q 'more than 5000 pods' "$W/agent.log" &&
		grep -q 'unexpected status code on pods response: 500 as it was told' "$W/agent.log" || return 1
	mode endless
	LIMIT=15 pod_fetch $uid1 $id1 >"$W/o" 2>&1 && die 'an identity from an endless list'
	echo "resident: $(rss) kB"
	[ "$(rss)" -lt 40000 ] || return 1
	mode ok
	sleep 0.6
	pod_fetch $uid1 $id1 >/dev/null || return 1
	kill "$KPID"
	sleep 0.6
	pod_fetch $uid1 $id1 >"$W/o" 2>&1 && return 1
	grep -q 'unable to perform request: Get .*connection refused' "$W/agent.log"
}

# A hundred and ten pods that all ask at once, and no more than a few requests for them.
whole_node() {
	all_up || return 1
	python3 tests/integration/kubelet.py fill "$W/k" 110
	entry all k8s:node-name:node-1 >/dev/null
	local k h before p=()
	h=$(printf 0 | sha256sum | cut -d' ' -f1)
	until_ok 5 pod_fetch "${h:0:8}-${h:8:4}-4${h:13:3}-8${h:17:3}-${h:20:12}" "$h" || return 1
	before=$(requests)
	for k in $(seq 0 109); do
		h=$(printf %d "$k" | sha256sum | cut -d' ' -f1)
		LIMIT=30 pod_fetch "${h:0:8}-${h:8:4}-4${h:13:3}-8${h:17:3}-${h:20:12}" "$h" >"$W/out.$k" 2>&1 &
		p+=($!)
	done
	for k in "${!p[@]}"; do
		wait "${p[$k]}" || die "pod $k: $(cat "$W/out.$k")"
	done
	echo "$(($(requests) - before)) requests: $(tail -n +$((before + 1)) "$W/k/requests" | tr '\n' ';')"
	[ $(($(requests) - before)) -lt 40 ]
}

t 'a process in a pod has all selectors of it' selectors
t 'init and ephemeral containers' kinds_of_containers
t 'the list is read only as far as needed' as_far_as_needed
t 'a container that the kubelet does not know yet is waited for, without holding others up' waiting
t 'one that it never knows is given up' giving_up
t 'what changes in a pod counts for the next process' freshness
t 'a container that is not ready, with disable_container_selectors' not_ready
t 'a token that changes is read again' credentials
t 'the kubelet is believed only with the right certificate' trust
t 'the read-only port' read_only_port
t 'a kubelet that misbehaves' misbehaving
t 'all pods of a node at once' whole_node
finish
