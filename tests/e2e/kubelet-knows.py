"""When the kubelet lists a pod's container: kubelet-knows.py URL PKI-FOLDER POD OUT writes the milliseconds since 1970 at which its answer first
had the container's id. Asks every 5 ms."""
import http.client
import json
import ssl
import sys
import time
import urllib.parse


def listed(pods, name):
    for pod in pods.get("items") or []:
        if pod["metadata"]["name"] == name:
            return any(c.get("containerID") for c in pod.get("status", {}).get("containerStatuses") or [])
    return False


def main():
    url, pki, name, out = sys.argv[1:]
    where = urllib.parse.urlparse(url)
    context = ssl.create_default_context(cafile=pki + "/ca.crt")
    context.load_cert_chain(pki + "/admin.crt", pki + "/admin.key")
    kubelet = http.client.HTTPSConnection(where.hostname, where.port, context=context)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        asked = time.time()
        kubelet.request("GET", where.path)
        if listed(json.loads(kubelet.getresponse().read()), name):
            with open(out, "w", encoding="ascii") as f:
                f.write(f"{int(asked * 1000)}\n")
            return
        time.sleep(0.005)
    sys.exit("the kubelet does not list " + name)


main()
