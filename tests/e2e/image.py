"""A container image from files of this machine, for tests: image.py OUT.tar NAME:TAG PATH=FILE… [-- ENTRYPOINT…]

The archive is Docker's form, which `docker load`, `podman load` and `ctr images import` read. A busybox gets links for its commands."""
import hashlib
import io
import json
import sys
import tarfile

FOLDERS = ["bin", "dev", "etc", "proc", "run", "sys", "tmp"]
COMMANDS = ["cat", "echo", "id", "ls", "nc", "ps", "sh", "sleep", "test", "wget"]


def add(tar, name, content, mode):
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))


def layer(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in FOLDERS:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(info)
        add(tar, "etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n", 0o644)
        for path, source in files:
            with open(source, "rb") as f:
                add(tar, path.lstrip("/"), f.read(), 0o755)
            if path == "/bin/busybox":
                for command in COMMANDS:
                    info = tarfile.TarInfo("bin/" + command)
                    info.type, info.linkname = tarfile.SYMTYPE, "busybox"
                    tar.addfile(info)
    return out.getvalue()


def main():
    args = sys.argv[1:]
    split = args.index("--") if "--" in args else len(args)
    out, name = args[:2]
    data = layer([f.split("=", 1) for f in args[2:split]])
    digest = hashlib.sha256(data).hexdigest()
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z", "history": [],
        "config": {"Entrypoint": args[split + 1:], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest]},
    }).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": [digest + ".tar"]}]).encode()
    with tarfile.open(out, "w") as tar:
        add(tar, config_name, config, 0o644)
        add(tar, digest + ".tar", data, 0o644)
        add(tar, "manifest.json", manifest, 0o644)


main()
