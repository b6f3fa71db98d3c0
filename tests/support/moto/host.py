"""What a host of EC2 reaches, on loopback: the metadata with its role's keys, and S3 by TLS, which is passed on to moto.

Arguments: the address of moto, and the role's keys as the metadata has them. It writes its two ports, of the metadata and of S3, and
ends with its standard input.
"""

import http.server, socket, sys, threading

from werkzeug.serving import generate_adhoc_ssl_context

moto, keys = sys.argv[1:]
ROLES = "/latest/meta-data/iam/security-credentials/"
ANSWERS = {("PUT", "/latest/api/token"): "token", ("GET", ROLES): "role", ("GET", ROLES + "role"): keys}


class Metadata(http.server.BaseHTTPRequestHandler):
    def answer(self):
        is_proven = self.command == "PUT" or self.headers["X-aws-ec2-metadata-token"] == "token"
        text = ANSWERS.get((self.command, self.path)) if is_proven else None
        self.send_response(200 if text else 401)
        self.end_headers()
        self.wfile.write((text or "").encode())

    do_GET = do_PUT = answer

    def log_message(self, *_):
        pass


def pass_on(client):
    host, port = moto.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as server, client:
        def copy(source, target):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

        back = threading.Thread(target=copy, args=(server, client))
        back.start()
        copy(client, server)
        back.join()


def accept(listener, tls):
    while True:
        try:
            client = tls.wrap_socket(listener.accept()[0], server_side=True)
            threading.Thread(target=pass_on, args=(client,), daemon=True).start()
        except OSError:
            pass


tls = generate_adhoc_ssl_context()
s3 = socket.create_server(("127.0.0.1", 0))
metadata = http.server.HTTPServer(("127.0.0.1", 0), Metadata)
threading.Thread(target=accept, args=(s3, tls), daemon=True).start()
threading.Thread(target=metadata.serve_forever, daemon=True).start()
print(metadata.server_port, s3.getsockname()[1], flush=True)
sys.stdin.read()
