#!/bin/bash
# The commands, as an operator's scripts see them: texts, JSON, exit codes, files. What is expected was seen with SPIRE 1.15.3.
source "$(dirname "$0")/lib.sh"

# gives CODE TEXT COMMAND…: the command ends with this code, and prints exactly this (standard output, then standard error)
gives() {
	local code=$1 want=$2 got status
	shift 2
	"$@" >"$W/o" 2>"$W/e"
	status=$?
	got=$(cat "$W/o" "$W/e")
	[ "$status" -eq "$code" ] || die "$*: status $status, not $code: $got"
	[ "$got" = "$want" ] || die "$*: $(diff <(echo "$want") <(echo "$got"))"
}

# says CODE PATTERN COMMAND…: the command ends with this code, and its output matches
says() {
	local code=$1 pattern=$2 status
	shift 2
	"$@" >"$W/o" 2>&1
	status=$?
	[ "$status" -eq "$code" ] || die "$*: status $status, not $code: $(cat "$W/o")"
	grep -qE -- "$pattern" "$W/o" || die "$*: no \"$pattern\" in: $(cat "$W/o")"
}

new_entry() { s entry create -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/$1" "${@:2}"; }

entries() {
	local shown
	server_start || return 1
	gives 0 'Found 0 entries' s entry show
	gives 0 '{"entries":[],"next_page_token":""}' s entry show -output json
	shown="Entry ID                : e1
SPIFFE ID               : spiffe://$TD/a
Parent ID               : spiffe://$TD/node
Revision                : 0
Downstream              : true
X509-SVID TTL           : 100
JWT-SVID TTL            : default
Expiration time         : 2033-05-18 03:33:20 +0000 UTC
Selector                : unix:gid:2
Selector                : unix:uid:1
DNS name                : a.example.org
DNS name                : b.example.org
Admin                   : true
StoreSvid               : true
Hint                    : hello
JwtSvidIncludeJti       : true"
	gives 0 "$shown" new_entry a -entryID e1 -selector unix:uid:1 -selector unix:gid:2 -x509SVIDTTL 100 -downstream -admin -storeSVID \
		-dns b.example.org -dns a.example.org -hint hello -entryExpiry 2000000000 -jwtSVIDIncludeJTI
	# as in SPIRE: the answer to a create is sorted, a list has the order that was given
	shown=$(sed '/^DNS name *: a/{h;d};/^DNS name *: b/G' <<<"$shown")
	gives 0 "Found 1 entry
$shown" s entry show -entryID e1
	gives 0 '1 registration entry' s entry count
	says 1 'code: AlreadyExists, msg: "similar entry already exists"' new_entry a -selector unix:uid:1 -selector unix:gid:2
	# a batch succeeds as JSON even when its items fail
	says 0 '"status":\{"code":6,"message":"similar entry already exists"\}' new_entry a -selector unix:uid:1 -selector unix:gid:2 -output json
	gives 1 'Error: at least one selector is required' new_entry b
	gives 1 'Error: selector "unix" must be formatted as type:value' new_entry b -selector unix
	gives 1 'Error: scheme is missing or invalid' s entry create -parentID foo -spiffeID "spiffe://$TD/b" -selector a:b
	gives 1 "Error: the -entryID flag can't be combined with others" s entry show -entryID e1 -spiffeID "spiffe://$TD/a"
	gives 1 'Error: error fetching entry ID no: rpc error: code = NotFound desc = entry not found' s entry show -entryID no
	says 0 'Parent ID +: spiffe://example.org/spire/server' s entry create -node -spiffeID "spiffe://$TD/alias" -selector x:y
	says 0 'Revision +: 1' s entry update -entryID e1 -parentID "spiffe://$TD/node" -spiffeID "spiffe://$TD/a" -selector unix:uid:9
	# what the update did not name is overwritten, but for the additional attributes
	says 0 'Found 1 entry' s entry show -entryID e1
	grep -q Hint "$W/o" && die "the hint is still there"
	gives 0 'Deleted entry with ID: e1


Deleted 1 entries successfully' s entry delete -entryID e1
	gives 1 '

Failed to delete 1 entriesFailed to delete entry with ID e1 (code: NotFound, msg: "entry not found")
Error: failed to delete one or more entries' s entry delete -entryID e1
	gives 0 '{"results":[{"id":"e1","status":{"code":5,"message":"entry not found"}}]}' s entry delete -entryID e1 -output json
}

files() {
	local i
	server_start || return 1
	{
		echo '{"entries": ['
		for i in $(seq 1200); do
			[ "$i" -eq 1 ] || echo ,
			echo "{\"entry_id\": \"n$i\", \"spiffe_id\": \"spiffe://$TD/n$i\", \"parent_id\": \"spiffe://$TD/node\","
			echo "\"selectors\": [{\"type\": \"unix\", \"value\": \"uid:$i\"}], \"x509_svid_ttl\": 60, \"entryExpiry\": 0, \"unknown\": 1}"
		done
		echo ']}'
	} >"$W/data.json"
	s entry create -data "$W/data.json" >"$W/created" || return 1
	[ "$(grep -c '^Entry ID' "$W/created")" -eq 1200 ] || die "not all were created"
	gives 0 '1200 registration entries' s entry count
	# more than a page
	[ "$(s entry show | grep -c '^Entry ID')" -eq 1200 ] || die "not all are shown"
	echo '{"ids": ["n1", "none"]}' | s entry delete -file - >"$W/deleted" 2>&1 && die "a missing one was deleted"
	grep -q 'Deleted 1 entries successfully, but failed to delete 1 entries' "$W/deleted" || die "$(cat "$W/deleted")"
	gives 1 "Error: open $W/none: no such file or directory" s entry create -data "$W/none"
	echo '{' >"$W/bad.json"
	says 1 "^Error: $W/bad.json:" s entry create -data "$W/bad.json"
}

others() {
	server_start || return 1
	says 0 '^Token: [0-9a-f-]{36}$' s token generate
	grep -q '^Warning: Missing SPIFFE ID.$' "$W/o" || die "no warning"
	says 0 '^\{"expires_at":"[0-9]+","value":"[0-9a-f-]{36}"\}$' s token generate -output json
	gives 1 'Error: rpc error: code = InvalidArgument desc = ttl is required, you must provide one' s token generate -ttl 0
	gives 0 'No attested agents found' s agent list
	gives 0 '0 attested agents' s agent count
	gives 1 'Error: a SPIFFE ID is required' s agent show
	gives 0 'No agents to purge.' s agent purge
	gives 0 '1 bundle' s bundle count
	gives 1 'Error: invalid format: "foo"' s bundle show -format foo
	says 0 '"use": "jwt-svid"' s bundle show -format spiffe
	gives 1 'Error: spiffeID must be specified' s x509 mint
	gives 1 'Error: at least one audience must be specified' s jwt mint -spiffeID "spiffe://$TD/m"
	says 0 '^JWT-SVID written to ' s jwt mint -spiffeID "spiffe://$TD/m" -audience a -write "$W/token"
	[ "$(stat -c %a "$W/token")" = 600 ] || die "the token's mode is $(stat -c %a "$W/token")"
	says 0 'capped shorter than specified ttl' s x509 mint -spiffeID "spiffe://$TD/m" -ttl 10m -write "$W"
	[ "$(stat -c '%a' "$W/svid.pem" "$W/key.pem" "$W/bundle.pem" | tr '\n' ' ')" = '644 600 644 ' ] || die "wrong modes"
	gives 0 'Logger Level : debug
Launch Level : debug' s logger get
	gives 0 '{"current_level":"WARN","launch_level":"DEBUG"}' s logger set -level warn -output json
	gives 1 'Error: the value "foo" is not a valid setting' s logger set -level foo
	says 0 '^Logger Level : debug$' s logger reset
	says 0 'SPIFFE ID:  spiffe://example.org/spire/server' s debug getinfo
}

codes() {
	says 127 'Available commands are' "$SERVER"
	says 127 'unknown command "entri"; did you mean "entry"' "$SERVER" entri
	says 1 'unknown command "entry creat"; did you mean "entry create"' "$SERVER" entry creat
	says 1 'flag provided but not defined: -spifeID; did you mean -spiffeID' "$SERVER" entry create -spifeID x
	says 0 'Usage of assay-server entry create' "$SERVER" entry create -h
	says 0 'explain' "$AGENT" --help
	gives 1 'Error: server is unhealthy: unable to determine health' "$SERVER" healthcheck -socketPath "$W/none"
	gives 1 'Agent is unhealthy: unable to determine health' "$AGENT" healthcheck -socketPath "$W/none"
	gives 1 'Error: you must define ASSAY_SERVER_PRIVATE_SOCKET_TEMPLATE to use the instance flag' "$SERVER" entry show -instance a
	server_start || return 1
	SPIRE_SERVER_PRIVATE_SOCKET=$W/server.sock gives 0 'Server is healthy.' "$SERVER" healthcheck
	SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE=$W/%i.sock gives 0 'Server is healthy.' "$SERVER" healthcheck -instance server
	gives 0 'Server is healthy.' "$SERVER" healthcheck --socketPath="$W/server.sock" ignored -words
}

workload() {
	both || return 1
	gives 1 'rpc error: code = PermissionDenied desc = no identity issued' fetch
	entry web "unix:uid:$(id -u)" -- -hint h >/dev/null || return 1
	fetch_ok || return 1
	says 0 '^Received 1 svid after ' fetch
	grep -qP '^SPIFFE ID:\t\tspiffe://example.org/web$' "$W/o" || die "$(cat "$W/o")"
	grep -qP '^Hint:\t\t\th$' "$W/o" || die "$(cat "$W/o")"
	gives 0 '' fetch -silent
	says 0 '^\{"crl":\[\],"federated_bundles":\{\},"svids":\[\{"bundle":' fetch -output json
	mkdir "$W/svids"
	says 0 "Writing SVID #0 to file $W/svids/svid.0.pem" fetch -write "$W/svids"
	[ "$(stat -c '%a' "$W"/svids/svid.0.pem "$W"/svids/svid.0.key "$W"/svids/bundle.0.pem | tr '\n' ' ')" = '644 600 644 ' ] || die "wrong modes"
	local socket="$W/public/agent.sock" jwt
	gives 1 'audience must be specified' "$AGENT" api fetch jwt -socketPath "$socket"
	says 0 '^token\(spiffe://example.org/web\):$' "$AGENT" api fetch jwt -audience a,b -socketPath "$socket"
	jwt=$(grep -o 'eyJ[A-Za-z0-9_.-]*' "$W/o" | head -n 1)
	says 0 '^SVID is valid.$' "$AGENT" api validate jwt -audience b -svid "$jwt" -socketPath "$socket"
	grep -q '^SPIFFE ID : spiffe://example.org/web$' "$W/o" || die "$(cat "$W/o")"
	says 1 '^SVID is not valid: ' "$AGENT" api validate jwt -audience x -svid "$jwt" -socketPath "$socket"
	says 0 '"claims":\{"aud":\["a","b"\]' "$AGENT" api validate jwt -audience a -svid "$jwt" -output json -socketPath "$socket"
	says 0 '^Received 1 svid after ' timeout --preserve-status -s INT 1 "$AGENT" api watch -socketPath "$socket"
	says 0 'spiffe://example.org/web' "$AGENT" explain -socketPath "$W/private/admin.sock" -pid $$
	says 1 'no process' "$AGENT" explain -socketPath "$W/private/admin.sock" -pid 4194304
}

configuration() {
	gives 0 'SPIRE server configuration file is valid.' "$SERVER" validate -config deploy/conf/server.conf
	gives 0 'SPIRE agent configuration file is valid.' "$AGENT" validate -config deploy/conf/agent.conf
	says 0 '^server.ca_ttl = "24h0m0s"$' "$SERVER" validate -config deploy/conf/server.conf -effective
	printf 'server {\n trust_domian = "x"\n bind_port = "y"\n}\n' >"$W/bad.conf"
	gives 1 "SPIRE server configuration file is invalid:
$W/bad.conf:2: unknown key \"trust_domian\" in \"server\"; did you mean \"trust_domain\"?
$W/bad.conf:3: \"bind_port\" must be a whole number, not \"y\"
$W/bad.conf:1: trust_domain must be configured
$W/bad.conf: plugins section must be configured
$W/bad.conf: exactly one KeyManager plugin is needed: \"disk\" or \"memory\"" "$SERVER" validate -config "$W/bad.conf"
	says 1 'did you mean "trust_domain"' "$SERVER" run -config "$W/bad.conf"
	gives 1 "SPIRE agent configuration file is invalid: could not find config file $W/none: please use the -config flag" \
		"$AGENT" validate -config "$W/none"
}

completion() {
	PATH=$O:$PATH
	# shellcheck source=/dev/null
	source deploy/completion/assay.bash
	completes() {
		COMP_WORDS=("${@:2}")
		COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
		_assay
		[ "${COMPREPLY[*]}" = "$1" ] || die "${*:2}: ${COMPREPLY[*]}"
	}
	completes 'count create delete show update' assay-server entry ''
	completes '-matchFederatesWithOn -matchSelectorsOn' assay-server entry show -m
	completes 'exact any superset subset' assay-server entry show -matchSelectorsOn ''
	completes 'jwt x509' assay-agent api fetch ''
}

t 'entries: texts, JSON, exit codes' entries
t 'entries from files, in batches and pages' files
t 'tokens, agents, bundles, minting, logger' others
t 'exit codes, help, sockets' codes
t 'the agent as a workload sees it' workload
t 'validate says everything at once' configuration
t 'completion by the programs'"'"' own tables' completion
finish
