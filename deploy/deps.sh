#!/bin/sh
# Installs what the build (or the tests, or the lint) needs on Debian 12, by package name, if it is missing.
#   deploy/deps.sh build|test|containers|lint|fuzz|kube|e2e|images …
# Without root and without password-free sudo it says which packages to install and fails.
set -eu

build="gcc g++ make pkg-config git ca-certificates curl autoconf automake libtool xz-utils libgrpc-dev libprotobuf-c-dev protobuf-c-compiler
 protobuf-compiler libprotobuf-dev libuv1-dev libsqlite3-dev libjansson-dev libhttp-parser-dev libyaml-dev libabsl-dev libre2-dev libc-ares-dev
 zlib1g-dev libdbus-1-dev"
test="openssl openssh-client sqlite3 python3 iproute2 procps psmisc mandoc jq"
servers="nginx libnginx-mod-http-js haproxy postgresql" # for the recipes of docs/PROXIES.md
containers="docker.io runc podman busybox-static dbus python3-jeepney"
lint="clang clang-format clang-tidy cppcheck python3 python3-yaml shellcheck"
fuzz="clang libclang-rt-14-dev"
kube="etcd-server"
e2e="etcd-server containerd runc busybox-static iptables containernetworking-plugins"
images="binutils ca-certificates python3"

want=
for group in "$@"; do
	case $group in
	build) want="$want $build" ;;
	test) want="$want $test" ;;
	servers) want="$want $servers" ;;
	containers) want="$want $containers" ;;
	lint) want="$want $lint" ;;
	fuzz) want="$want $fuzz" ;;
	kube) want="$want $kube" ;;
	e2e) want="$want $e2e" ;;
	images) want="$want $images" ;;
	*) echo "deps.sh: no such group: $group (build, test, servers, containers, lint, fuzz, kube, e2e, images)" >&2; exit 2 ;;
	esac
done
missing=
for p in $want; do
	s=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)
	[ "$s" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
	as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
	as_root="sudo -n"
else
	echo "These Debian packages are needed and missing; install them as root, then run make again:" >&2
	echo "  apt-get install$missing" >&2
	exit 1
fi
if ! command -v apt-get >/dev/null; then
	echo "This is not Debian. Needed here, by their Debian names:$missing" >&2
	exit 1
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
# Servers that the tests need are not started when they are installed, nor with the machine.
case $missing in
*nginx* | *haproxy* | *postgresql*)
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		printf '#!/bin/sh\nexit 101\n' | $as_root tee /usr/sbin/policy-rc.d >/dev/null
		$as_root chmod 755 /usr/sbin/policy-rc.d
		trap '$as_root rm -f /usr/sbin/policy-rc.d' EXIT
	fi
	;;
esac
# shellcheck disable=SC2086
$as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
	{ $as_root apt-get update -qq && $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null; }
for p in nginx haproxy postgresql; do
	case " $missing " in
	*" $p "*) [ ! -d /run/systemd/system ] || $as_root systemctl -q disable "$p" || true ;;
	esac
done
