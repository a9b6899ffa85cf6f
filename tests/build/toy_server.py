"""A server program that tells what it sees: the digest of each model file, read anew for each question."""

import hashlib
import json
import os
import signal
import socket
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler

with open(sys.argv[1]) as stream:
    REQUEST = json.load(stream)
FILES = REQUEST["model"]["files"]
MODE = os.environ.get("TOY", "")


class Handler(BaseHTTPRequestHandler):
    """Answers over HTTP/1.1, the way an inference server does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer({"data": [{"id": REQUEST["name"]}], "request": REQUEST})
        elif self.path == "/digests":
            digests = {}
            for name, path in FILES.items():
                with open(path, "rb") as model:
                    digests[name] = hashlib.sha256(model.read()).hexdigest()
            self.answer(digests)
        elif self.path == "/write":
            refused = []
            for path in FILES.values():
                try:
                    with open(path, "r+b") as model:
                        model.write(b"evil")
                        model.flush()
                except OSError as error:
                    refused.append(error.errno)
            self.answer(refused)
        elif self.path.startswith("/reach/"):
            try:
                socket.create_connection(("127.0.0.1", int(self.path[7:])), timeout=2).close()
                self.answer("reached")
            except OSError as error:
                self.answer(str(error))
        elif self.path == "/stream":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for index in range(5):
                self.wfile.write(f"data: {index}\n\n".encode())
                self.wfile.flush()
                time.sleep(0.2)
            self.close_connection = True
        elif self.path == "/die":
            print("about to die: a reason", flush=True)
            os._exit(3)

    def do_POST(self) -> None:
        body = self.rfile.read()  # to the end of the client's half of the connection
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "relay"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """One thread a connection."""

    daemon_threads = True
    request_queue_size = 64


def end(number: int, frame: object) -> None:
    print("ended by signal", number, flush=True)
    os._exit(0)


signal.signal(signal.SIGTERM, end)
if MODE == "fail":
    print("cannot load the model: some reason", flush=True)
    sys.exit(7)
if MODE == "redirect":
    os.symlink(os.environ["TARGET"], REQUEST["socket"])  # noqa: PTH211
    time.sleep(60)
if MODE == "mute":
    time.sleep(60)
with Server(REQUEST["socket"], Handler) as server:
    server.serve_forever()
