"""hostile-bundles.py PORT CERT KEY: bundle endpoints that misbehave, one for each path."""
import base64
import json
import socket
import ssl
import sys
import threading
import time

port, cert, key = int(sys.argv[1]), sys.argv[2], sys.argv[3]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def body(c, text):
    c.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(text) + text)


def answer(c, kind):
    if kind == "hang":
        time.sleep(600)
    elif kind == "drip":  # one byte a second
        c.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        while True:
            c.sendall(b" ")
            time.sleep(1)
    elif kind == "huge":  # announced
        c.sendall(HEAD + b"Content-Length: 104857600\r\n\r\n")
        for _ in range(100):
            c.sendall(b" " * 1048576)
    elif kind == "endless":  # not announced
        c.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            c.sendall(b"100000\r\n" + b"x" * 1048576 + b"\r\n")
    elif kind == "garbage":
        c.sendall(bytes(range(256)) * 100)
    elif kind == "deep":
        body(c, b'{"keys":' + b"[" * 200000 + b"]" * 200000 + b"}")
    elif kind == "wrong":
        body(c, json.dumps({"keys": [{"use": "x509-svid", "kty": "EC", "x5c": [base64.b64encode(b"no").decode()]}]}).encode())
    elif kind == "status":
        c.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nsorry")
    elif kind == "keys":
        body(c, json.dumps({"keys": [{"use": "x"}] * 5000}).encode())
    else:
        c.sendall(HEAD + b"Content-Length: 10\r\n\r\nab")


def serve(raw):
    try:
        with context.wrap_socket(raw, server_side=True) as c:
            request = c.recv(4096).decode()
            answer(c, request.split()[1].strip("/"))
    except OSError:
        pass


with socket.create_server(("127.0.0.1", port)) as listener:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()
