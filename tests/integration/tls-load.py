"""Requests over mutual TLS in four threads until a file is there, by an identity in files that change meanwhile.

tls-load.py PORT STOP FOLDER SERVER-SPIFFE-ID BODY: FOLDER has svid.pem, svid.key and bundle.pem; each connection takes the
present ones, carries ten requests, and must get a body that ends with BODY. A request that met the end of an idle
connection is sent once more on a new one, as RFC 9110, 9.2.2 has it for GET; these are counted apart.
"""
import http.client
import os
import ssl
import sys
import threading

port, stop, folder, server, want = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5]
good, again, bad, certs = [0] * 4, [0] * 4, [], set()
CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


def connect():
    # One look at where ..data leads, so that key and certificate are of the same set.
    now = os.path.realpath(os.path.join(folder, "..data"))
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ctx.check_hostname = False
    ctx.load_cert_chain(os.path.join(now, "svid.pem"), os.path.join(now, "svid.key"))
    ctx.load_verify_locations(os.path.join(now, "bundle.pem"))
    c = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=ctx)
    c.connect()
    cert = c.sock.getpeercert()
    if ("URI", server) not in cert["subjectAltName"]:
        raise RuntimeError(f"the server is {cert['subjectAltName']}")
    certs.add(cert["serialNumber"])
    return c


def ask(c):
    c.request("GET", "/", headers={"X-SPIFFE-ID": "spiffe://example.org/forged", "x_spiffe_id": "forged"})
    r = c.getresponse()
    body = r.read().decode()
    if r.status != 200 or not body.endswith(want):
        raise RuntimeError(f"{r.status} {body!r}")


def run(i):
    while not os.path.exists(stop):
        try:
            c = connect()
            for k in range(10):
                try:
                    ask(c)
                except CLOSED:
                    if k == 0:
                        raise
                    again[i] += 1
                    c.close()
                    c = connect()
                    ask(c)
                good[i] += 1
            c.close()
        except Exception as e:  # pylint: disable=broad-except
            bad.append(repr(e))


threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
for t in threads:
    t.start()
for t in threads:
    t.join()
print(f"{sum(good)} requests, {len(bad)} failed, {sum(again)} sent again; {len(certs)} certificates of the server seen", *bad[:5], sep="\n")
sys.exit(0 if not bad and sum(good) > 100 else 1)
