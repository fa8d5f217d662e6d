#!/usr/bin/env python3
"""Makes a container image of one program: deploy/image.py server|agent --bin FILE --version V --out FILE.tar

An image is the stripped program, the shared libraries that it is linked with and what libc reads at run time: no base image,
registry or container tool is needed. The archive is an OCI image layout that also has docker's manifest.json, so that `docker
load`, `podman load` and `ctr images import` all take it. The same inputs give the same bytes: names are sorted, times are fixed
(SOURCE_DATE_EPOCH, else the last commit's), layers are not compressed.

The libraries are a layer of their own, which both images and their next versions share on a node.
"""
import argparse
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import time

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
SERVER_ID = 65532  # of nobody else: not 1000, which on many hosts is a person's
ARCHES = {"x86_64": ("amd64", None), "aarch64": ("arm64", "v8")}

ABOUT = {
    "server": {
        "title": "Assay server",
        "description": "Workload identity service (SPIFFE): signs the identities of a trust domain",
        "uid": SERVER_ID,
        "limit_mb": 20,
        "ports": ["8081/tcp"],
    },
    "agent": {
        "title": "Assay agent",
        "description": "Workload identity service (SPIFFE): serves a node's workloads their identities; its CSI driver",
        "uid": 0,  # it must read other users' /proc/PID/exe and write to the host's socket folder
        "limit_mb": 15,
        "ports": [],
    },
}


def die(text):
    sys.exit(f"image.py: {text}")


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def stripped(path):
    """The program without symbols, and without the build ID, which depends on the folder that it was built in."""
    with tempfile.TemporaryDirectory() as d:
        out = os.path.join(d, "program")
        run("strip", "--strip-all", "--remove-section=.note.gnu.build-id", "--remove-section=.comment", "-o", out, path)
        with open(out, "rb") as f:
            return f.read()


def libraries(program):
    """The files that the loader needs, by the names under which it looks for them."""
    found = {}
    for line in run("ldd", program).splitlines():
        if "not found" in line:
            die(f"{program} lacks a library:{line}")
        m = re.search(r"(/\S+) \(0x", line)
        if m:
            found[m.group(1)] = os.path.realpath(m.group(1))
    if not found:
        die(f"ldd names no library of {program}")
    return found


class Layer:
    def __init__(self):
        self.members = {}

    def folder(self, path, mode=0o755, uid=0):
        parts = path.strip("/").split("/")
        for i in range(1, len(parts)):
            self.members.setdefault("/".join(parts[:i]), (tarfile.DIRTYPE, 0o755, 0, b"", ""))
        self.members["/".join(parts)] = (tarfile.DIRTYPE, mode, uid, b"", "")

    def _into(self, path):
        parent = os.path.dirname(path.strip("/"))
        if parent and parent not in self.members:
            self.folder(parent)

    def file(self, path, data, mode=0o644):
        self._into(path)
        self.members[path.strip("/")] = (tarfile.REGTYPE, mode, 0, data, "")

    def link(self, path, to):
        self._into(path)
        self.members[path.strip("/")] = (tarfile.SYMTYPE, 0o777, 0, b"", to)

    def tar(self):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as t:
            for name in sorted(self.members):
                kind, mode, uid, data, to = self.members[name]
                i = tarfile.TarInfo(name)
                i.type, i.mode, i.uid, i.gid, i.size, i.linkname = kind, mode, uid, uid, len(data), to
                t.addfile(i, io.BytesIO(data))
        return out.getvalue()


def read(path):
    with open(path, "rb") as f:
        return f.read()


def base_layer(libs):
    users = [("root", 0, "/"), ("assay", SERVER_ID, "/var/lib/assay"), ("nobody", 65534, "/")]
    layer = Layer()
    for name, path in libs.items():
        layer.file(name, read(path), 0o755)
    layer.file("etc/passwd", "".join(f"{n}:x:{i}:{i}::{h}:/sbin/nologin\n" for n, i, h in users).encode())
    layer.file("etc/group", "".join(f"{n}:x:{i}:\n" for n, i, _ in users).encode())
    # libc's own "files" and "dns" are in libc.so itself since 2.34: no module is loaded.
    layer.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n")
    layer.file(CA_BUNDLE, read(CA_BUNDLE))
    layer.folder("tmp", 0o1777)
    for empty in ("proc", "sys", "dev"):
        layer.folder(empty)
    return layer


def program_layer(what, data):
    uid = ABOUT[what]["uid"]
    name = f"assay-{what}"
    layer = Layer()
    layer.file(f"opt/assay/bin/{name}", data, 0o755)
    # Manifests written for SPIRE's images run healthcheck and the operator's commands by this name.
    layer.link(f"opt/spire/bin/spire-{what}", f"/opt/assay/bin/{name}")
    for product in ("assay", "spire"):
        layer.folder(f"etc/{product}/{what}", 0o755, uid)
        layer.folder(f"var/lib/{product}/{what}", 0o750 if what == "server" else 0o700, uid)
        layer.folder(f"run/{product}/{what}", 0o755, uid)
        layer.folder(f"run/{product}/{what}/{'private' if what == 'server' else 'public'}", 0o755, uid)
    return layer


def git(*args):
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        return subprocess.run(("git", "-C", here) + args, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def created():
    seconds = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct") or "0"
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(seconds)))


def architecture():
    machine = platform.machine()
    if machine not in ARCHES:
        die(f"no name known for the architecture {machine}")
    return ARCHES[machine]


def dump(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Archive:
    """An OCI image layout (image-layout.md) with docker's manifest.json beside its index."""

    def __init__(self):
        self.files = {"oci-layout": dump({"imageLayoutVersion": "1.0.0"})}

    def blob(self, data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        self.files[f"blobs/sha256/{digest}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def write(self, path):
        folders = {"blobs", "blobs/sha256"}
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(os.path.abspath(path)), delete=False) as f:
            with tarfile.open(fileobj=f, mode="w", format=tarfile.USTAR_FORMAT) as t:
                for name in sorted(folders | set(self.files)):
                    i = tarfile.TarInfo(name)
                    data = self.files.get(name)
                    i.type, i.mode = (tarfile.DIRTYPE, 0o755) if data is None else (tarfile.REGTYPE, 0o644)
                    i.size = len(data or b"")
                    t.addfile(i, io.BytesIO(data or b""))
        os.chmod(f.name, 0o644)
        os.replace(f.name, path)


def config_of(what, version, layers, when):
    about = ABOUT[what]
    arch, variant = architecture()
    labels = {
        "org.opencontainers.image.title": about["title"],
        "org.opencontainers.image.description": about["description"],
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.created": when,
    }
    revision = git("rev-parse", "HEAD")
    if revision:
        labels["org.opencontainers.image.revision"] = revision
    config = {
        "User": f"{about['uid']}:{about['uid']}",
        "Env": ["PATH=/opt/assay/bin"],
        "Entrypoint": [f"/opt/assay/bin/assay-{what}", "run"],
        "WorkingDir": "/opt/assay",
        "Labels": labels,
        "StopSignal": "SIGTERM",
    }
    if about["ports"]:
        config["ExposedPorts"] = {p: {} for p in about["ports"]}
    out = {
        "created": when,
        "architecture": arch,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(d).hexdigest() for _, d in layers]},
        "history": [{"created": when, "created_by": f"deploy/image.py: {name}"} for name, _ in layers],
    }
    if variant:
        out["variant"] = variant
    return out, labels


def image(what, version, layers, when):
    a = Archive()
    config, labels = config_of(what, version, layers, when)
    media = "application/vnd.oci.image."
    manifest = {
        "schemaVersion": 2,
        "mediaType": media + "manifest.v1+json",
        "config": a.blob(dump(config), media + "config.v1+json"),
        "layers": [a.blob(data, media + "layer.v1.tar") for _, data in layers],
        "annotations": labels,
    }
    name = f"assay-{what}:{version}"
    entry = a.blob(dump(manifest), media + "manifest.v1+json")
    platform_ = {"architecture": config["architecture"], "os": "linux"}
    if "variant" in config:
        platform_["variant"] = config["variant"]
    entry["platform"] = platform_
    entry["annotations"] = {
        "org.opencontainers.image.ref.name": version,
        "io.containerd.image.name": f"docker.io/library/{name}",  # as a cluster writes "image: assay-agent:VERSION" in full
    }
    a.files["index.json"] = dump({"schemaVersion": 2, "mediaType": media + "index.v1+json", "manifests": [entry]})
    path = lambda blob: "blobs/" + blob["digest"].replace(":", "/")
    a.files["manifest.json"] = dump([{
        "Config": path(manifest["config"]),
        "RepoTags": [name],
        "Layers": [path(layer) for layer in manifest["layers"]],
    }])
    return a, name, entry["digest"]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("what", choices=sorted(ABOUT))
    p.add_argument("--bin", required=True)
    p.add_argument("--version", required=True)
    p.add_argument("--out", required=True)
    o = p.parse_args()
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", o.version):
        die(f"{o.version} cannot be an image's tag")
    layers = [("libraries", base_layer(libraries(o.bin)).tar()), ("program", program_layer(o.what, stripped(o.bin)).tar())]
    a, name, digest = image(o.what, o.version, layers, created())
    size = sum(len(d) for _, d in layers)
    limit = ABOUT[o.what]["limit_mb"]
    if size > limit * 1000000:
        die(f"{name} has {size / 1e6:.1f} MB, more than the {limit} MB that it may have")
    a.write(o.out)
    print(f"{name} {size / 1e6:.1f} MB {digest}")


main()
