#!/usr/bin/env python3
"""images.py ARCHIVE LIMIT-MB UID: is it a sound OCI image layout, and a docker archive? Says what is wrong."""
import hashlib
import io
import json
import sys
import tarfile

archive, limit, uid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
problems = []


def want(ok, what):
    if not ok:
        problems.append(what)


files = {}
with tarfile.open(archive) as t:
    for m in t:
        want(m.mtime == 0 and m.uid == 0 and m.gid == 0 and not m.uname, f"{m.name}: owner or time")
        if m.isfile():
            files[m.name] = t.extractfile(m).read()
want(json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}, "oci-layout")


def blob(descriptor):
    data = files["blobs/" + descriptor["digest"].replace(":", "/")]
    want(len(data) == descriptor["size"], f"size of {descriptor['digest']}")
    want("sha256:" + hashlib.sha256(data).hexdigest() == descriptor["digest"], f"digest of {descriptor['digest']}")
    return data


index = json.loads(files["index.json"])
want(index["schemaVersion"] == 2 and len(index["manifests"]) == 1, "index.json")
entry = index["manifests"][0]
manifest = json.loads(blob(entry))
config = json.loads(blob(manifest["config"]))
layers = [blob(layer) for layer in manifest["layers"]]
want(all(layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar" for layer in manifest["layers"]), "media type of layers")
want(config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(d).hexdigest() for d in layers], "diff_ids")
want((config["os"], config["architecture"]) == (entry["platform"]["os"], entry["platform"]["architecture"]), "platform")
want(config["config"]["User"] == f"{uid}:{uid}", f"user {config['config']['User']}")
for label in "title", "description", "version", "created":
    want(config["config"]["Labels"].get("org.opencontainers.image." + label), f"label {label}")
docker = json.loads(files["manifest.json"])[0]
want(files[docker["Config"]] == files["blobs/" + manifest["config"]["digest"].replace(":", "/")], "manifest.json: config")
want([files[x] for x in docker["Layers"]] == layers, "manifest.json: layers")
size = sum(map(len, layers))
want(size <= limit * 1000000, f"{size} bytes, more than {limit} MB")

seen = {}
for data in layers:
    with tarfile.open(fileobj=io.BytesIO(data)) as t:
        names = [m.name for m in t]
        want(names == sorted(names), "names not sorted")
        for m in t:
            want(not m.name.startswith("/") and ".." not in m.name.split("/"), f"{m.name}: bad name")
            want(not m.mode & 0o6000, f"{m.name}: set-user-ID")
            want(m.mtime == 0, f"{m.name}: time")
            want(m.isdir() or m.uid == 0, f"{m.name}: a file that the program may change")
            seen[m.name] = m
for must in ("etc/passwd", "etc/nsswitch.conf", "etc/ssl/certs/ca-certificates.crt", config["config"]["Entrypoint"][0][1:]):
    want(must in seen, f"{must} is missing")
print(f"{size} bytes")
for p in problems:
    print(p)
sys.exit(bool(problems))
