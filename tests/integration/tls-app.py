"""A server with mutual TLS by an identity in files: tls-app.py PORT FOLDER CLIENT-SPIFFE-ID. Each connection takes the present
files; its client must be that one. It answers whom it was told of."""
import http.server
import os
import ssl
import sys

port, folder, client = int(sys.argv[1]), sys.argv[2], sys.argv[3]


class Server(http.server.ThreadingHTTPServer):
    def get_request(self):
        sock, address = super().get_request()
        now = os.path.realpath(os.path.join(folder, "..data"))
        ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ctx.load_cert_chain(os.path.join(now, "svid.pem"), os.path.join(now, "svid.key"))
        ctx.load_verify_locations(os.path.join(now, "bundle.pem"))
        ctx.verify_mode = ssl.CERT_REQUIRED
        return ctx.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request, client_address):
        print("connection:", repr(sys.exc_info()[1]), flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    disable_nagle_algorithm = True

    def setup(self):
        self.request.do_handshake()
        super().setup()

    def do_GET(self):
        cert = self.request.getpeercert()
        ok = ("URI", client) in cert["subjectAltName"]
        body = ("client=" + ",".join(self.headers.get_all("X-SPIFFE-ID") or [])).encode() if ok else b"who are you?"
        self.send_response(200 if ok else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *args):
        pass


Server(("127.0.0.1", port), Handler).serve_forever()
