"""A small reverse proxy that wants a key and serves a gateway below /me5/, as many are run behind one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

PREFIX = "/me5"
KEY = "sesame"
# Of the gateway's answer; the rest is the connection's own.
HEADERS = ("content-type", "content-security-policy", "etag", "cache-control", "retry-after")


@contextmanager
def key_proxy(gateway_url: str) -> Iterator[str]:
    """The proxy's address, with its prefix. All but GET needs `Authorization: Bearer sesame`, and so does /info."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._pass(b"")

        def do_POST(self) -> None:
            self._pass(self.rfile.read(int(self.headers["content-length"])))

        def _pass(self, body: bytes) -> None:
            path = self.path.removeprefix(PREFIX)
            closed = self.command == "POST" or path == "/info"
            if path == self.path:
                self._give(404, b"", {})
            elif closed and self.headers["authorization"] != f"Bearer {KEY}":
                refusal = {"error": "a key is missing or not known", "error_type": "Unauthorized"}
                self._give(401, json.dumps(refusal).encode(), {"content-type": "application/json"})
            else:
                answer = httpx.request(
                    self.command,
                    f"{gateway_url}{path}",
                    content=body,
                    headers={"accept": self.headers["accept"] or "*/*"},
                    timeout=60,
                )
                kept = {name: answer.headers[name] for name in HEADERS if name in answer.headers}
                self._give(answer.status_code, answer.content, kept)

        def _give(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: what goes wrong is asserted."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{PREFIX}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
