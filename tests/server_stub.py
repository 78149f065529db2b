"""A server like those that ``bench.served`` asks, which does what a test wants: ``python server_stub.py PORT HOW``."""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOW = sys.argv[2]
if HOW == "does not start":
    sys.exit("no such model")
ASKED: list[dict[str, Any]] = []
ALL_HERE = threading.Barrier(3)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = json.dumps(ASKED).encode()
        self.send_response(200 if self.path in ("/health", "/asked") else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        ASKED.append(asked | {"key": self.headers.get("authorization"), "path": self.path})
        if HOW == "refuses":
            self.send_error(503, "no room")
            return
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        count = asked.get("n_predict") or asked["max_tokens"]
        if HOW == "in parallel" and count > 8:  # warming up is one request alone
            ALL_HERE.wait(20)  # passes only when three requests are here at once
        made = count
        if HOW in ("short", "inside a character") and count > 8:
            count -= 1
        if HOW == "short":
            made = count
        self.part(b": still at work\n\n")
        for at in range(0, count, 2):
            time.sleep(0.005)
            self.event({"tokens": [asked["prompt"][0]] * min(2, count - at), "stop": False})
            if HOW == "breaks":
                self.event({"error": {"message": "the replica has ended"}})
        self.event({"tokens": [], "stop": True, "content": "", "tokens_predicted": made})
        self.part(b"data: [DONE]\n\n")
        self.part(b"")

    def event(self, value: dict[str, Any]) -> None:
        self.part(b"data: " + json.dumps(value).encode() + b"\n\n")

    def part(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
