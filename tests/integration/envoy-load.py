"""Requests one after the other in four threads, each on a new connection to the proxy, until a file is there."""
import http.client
import os
import sys
import threading

port, stop = int(sys.argv[1]), sys.argv[2]
good, bad = [0] * 4, []


def run(i):
    while not os.path.exists(stop):
        try:
            c = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            for _ in range(10):
                c.request("GET", "/")
                r = c.getresponse()
                body = r.read()
                if r.status != 200 or body != b"hello\n":
                    raise RuntimeError(f"{r.status} {body!r}")
                good[i] += 1
            c.close()
        except Exception as e:  # pylint: disable=broad-except
            bad.append(repr(e))


threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
for t in threads:
    t.start()
for t in threads:
    t.join()
print(f"{sum(good)} requests, {len(bad)} failed", *bad[:5], sep="\n")
sys.exit(0 if not bad and sum(good) > 100 else 1)
