"""A coded model behind a real OpenAI-compatible HTTP server."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# From the last message of a chat to the answer.
Say = Callable[[str], str]


class CodedServer(ThreadingHTTPServer):
    """Serves one model, which answers as `say` does; answers carry `weights` if it is set."""

    def __init__(self, say: Say, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say, self.name, self.weights = say, name, ""
        self.asked: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: CodedServer
    # Connections are kept: making one for each request takes longer than the request.
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": self.server.name}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "messages" not in body:
            self._answer(404, {"error": "this model only chats"})
            return
        self.server.asked.append(body)
        said = self.server.say(body["messages"][-1]["content"])
        self._answer(200, {"choices": [{"message": {"role": "assistant", "content": said}}]})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        if self.server.weights:
            self.send_header("X-Triptych-Weights", self.server.weights)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def coded_server(say: Say, name: str = "coded") -> Iterator[CodedServer]:
    """Runs a server for as long as the context lasts."""
    with CodedServer(say, name) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
