#!/usr/bin/env python3
"""A stand-in for a node's kubelet: GET /pods of the pods in a folder, well behaved or not.

kubelet.py serve DIR PORT [CERT KEY]   HTTPS with a certificate, else HTTP. Looks at DIR anew for each request:
    DIR/pods/*.json      the pods, in the order of their names
    DIR/token            if it is there, the bearer token that is asked for
    DIR/mode             how it behaves: ok; stall NAME (nothing more for 20 s after that pod); cut NAME (ends there); nonsense;
                         endless (a string without end); many (pods without end); code N
    DIR/requests         a line for each: status, bytes sent, "whole", "cut" or "left" (the client went away)
kubelet.py pod DIR NAME NAMESPACE UID CONTAINER-ID [KEY=VALUE…]
    a pod as a real kubelet describes one: those are its labels. CONTAINER-ID - is one that is not ready yet, init:ID and debug:ID an
    init and an ephemeral container besides a main one.
kubelet.py fill DIR COUNT              so many other pods
"""
import hashlib
import http.server
import json
import os
import select
import ssl
import sys

FIELDS = ["f:metadata", "f:spec", "f:status", "f:containers", "f:conditions", "f:volumes", "f:tolerations", "f:podIPs"]


def status(name, ident, done=False):
    digest = hashlib.sha256(name.encode()).hexdigest()
    image = f"registry.example.org/{name}"
    if not ident:
        return {"name": name, "state": {"waiting": {"reason": "ContainerCreating"}}, "lastState": {}, "ready": False, "restartCount": 0,
                "image": f"{image}:1.2", "imageID": "", "started": False}
    state = {"terminated": {"exitCode": 0, "reason": "Completed", "containerID": f"containerd://{ident}"}} if done else {
        "running": {"startedAt": "2026-01-02T03:04:05Z"}}
    return {"name": name, "state": state, "lastState": {}, "ready": True, "restartCount": 0, "image": f"{image}:1.2",
            "imageID": f"{image}@sha256:{digest}", "containerID": f"containerd://{ident}", "started": True, "resources": {},
            "volumeMounts": [{"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True,
                              "recursiveReadOnly": "Disabled"}]}


def managed(depth):
    return {f"k:{{\"type\":\"{f}\"}}": managed(depth - 1) if depth else {".": {}, "f:name": {}, "f:mountPath": {}} for f in FIELDS[:4]}


def pod(name, namespace, uid, ident, labels):
    main, init, debug = ident, "", ""
    if ident == "-":
        main = ""
    elif ident.startswith("init:"):
        main, init = "", ident[5:]
    elif ident.startswith("debug:"):
        main, debug = hashlib.sha256(uid.encode()).hexdigest(), ident[6:]
    owner = f"{name}-5d4f8b9c7"
    p = {"metadata": {
            "name": name, "generateName": f"{owner}-", "namespace": namespace, "uid": uid, "resourceVersion": "4711", "labels": labels,
            "annotations": {"kubernetes.io/config.seen": "2026-01-02T03:04:00Z", "kubernetes.io/config.source": "api",
                            "note": "{\"uid\": \"not this\", \"containerID\": \"containerd://nor this\"}"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": uid[::-1], "controller": True}],
            "managedFields": [{"manager": m, "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": managed(2)}
                              for m in ("kube-controller-manager", "kubelet")]},
         "spec": {
            "volumes": [{"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}}],
            "containers": [{"name": name, "image": f"registry.example.org/{name}:1.2", "env": [{"name": f"SETTING_{i}", "value": "x" * 20}
                                                                                              for i in range(10)]}],
            "serviceAccountName": f"{name}-account", "serviceAccount": f"{name}-account", "nodeName": "node-1",
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]},
         "status": {
            "phase": "Running", "qosClass": "Burstable", "hostIP": "192.0.2.1", "podIP": "10.0.0.9",
            "conditions": [{"type": t, "status": "True", "lastProbeTime": None, "lastTransitionTime": "2026-01-02T03:04:05Z"}
                           for t in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")],
            "containerStatuses": [status(name, main)]}}
    if init:
        p["status"]["initContainerStatuses"] = [status(f"{name}-init", init, done=False)]
    if debug:
        p["status"]["ephemeralContainerStatuses"] = [status(f"{name}-debug", debug)]
    return p


def write_pod(folder, name, value):
    os.makedirs(f"{folder}/pods", exist_ok=True)
    with open(f"{folder}/.new-{os.getpid()}", "w", encoding="utf-8") as f:
        json.dump(value, f, separators=(",", ":"))
    os.rename(f"{folder}/.new-{os.getpid()}", f"{folder}/pods/{name}.json")


def fill(folder, count):
    for i in range(count):
        h = hashlib.sha256(b"%d" % i).hexdigest()
        uid = f"{h[:8]}-{h[8:12]}-4{h[13:16]}-8{h[17:20]}-{h[20:32]}"
        write_pod(folder, f"filler-{i:03}", pod(f"filler-{i:03}", f"team-{i % 7}", uid, h, {"app": f"filler-{i:03}", "team": str(i % 7)}))


def read_pods(folder, known={}):
    """Names and texts of the pods; read again when the folder has changed."""
    now = os.stat(f"{folder}/pods").st_mtime_ns
    if known.get("at") != now:
        pods = []
        for name in sorted(os.listdir(f"{folder}/pods")):
            with open(f"{folder}/pods/{name}", "rb") as f:
                pods.append((name, f.read()))
        known.update(at=now, pods=pods)
    return known["pods"]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = ""

    def log_message(self, *args):
        pass

    def put(self, data):
        self.sent += len(data)
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def note(self, code, how):
        with open(f"{self.folder}/requests", "a", encoding="utf-8") as f:
            f.write(f"{code} {self.sent} {how}\n")

    def fail(self, code, text):
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        self.note(code, "whole")

    def stall(self):
        left = bool(select.select([self.connection], [], [], 20)[0])
        self.close_connection = True
        return left

    def list_pods(self, mode):
        word, _, arg = mode.partition(" ")
        head, pods = b'{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[', read_pods(self.folder)
        if word == "ok":
            self.put(head + b",".join(text for _, text in pods) + b"]}\n")
            self.wfile.write(b"0\r\n\r\n")
            return "whole"
        self.put(head)
        if word == "endless":
            self.put(b'{"spec":{"x":"')
            while True:
                self.put(b"y" * 65536)
        i = 0
        while word == "many":
            self.put(b'%s{"metadata":{"uid":"uid-%d","labels":{"l":"%s"}}}' % (b"," if i else b"", i, b"z" * 60))
            i += 1
        first = True
        for name, text in pods:
            self.put((b"" if first else b",") + text)
            first = False
            if arg and name == f"{arg}.json":
                if word == "stall":
                    return "left" if self.stall() else "stalled"
                self.close_connection = True
                return "cut"
        self.put(b"]}\n")
        self.wfile.write(b"0\r\n\r\n")
        return "whole"

    def do_GET(self):
        self.sent = 0
        mode = "ok"
        try:
            with open(f"{self.folder}/mode", encoding="utf-8") as f:
                mode = f.read().strip()
        except FileNotFoundError:
            pass
        if os.path.exists(f"{self.folder}/token"):
            with open(f"{self.folder}/token", encoding="utf-8") as f:
                if self.headers.get("Authorization") != f"Bearer {f.read().strip()}":
                    self.fail(401, b"Unauthorized")
                    return
        if self.path != "/pods":
            self.fail(404, b"404 page not found\n")
            return
        if mode.startswith("code "):
            self.fail(int(mode[5:]), b"as it was told")
            return
        if mode == "nonsense":
            self.fail(200, b"<html>this is not a kubelet</html>")
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            how = self.list_pods(mode)
        except OSError:
            how = "left"
            self.close_connection = True
        self.note(200, how)


def serve(folder, port, cert=None, key=None):
    Handler.folder = folder
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    server.daemon_threads = True
    if cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if sys.argv[1] == "serve":
    serve(*sys.argv[2:])
elif sys.argv[1] == "pod":
    write_pod(sys.argv[2], sys.argv[3], pod(*sys.argv[3:7], dict(x.split("=", 1) for x in sys.argv[7:])))
elif sys.argv[1] == "fill":
    fill(sys.argv[2], int(sys.argv[3]))
