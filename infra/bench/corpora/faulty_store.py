"""Serves the files of a folder as an object store with S3's requests for reading, and as plain HTTP, with faults."""

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

# The kinds of faults: two statuses, a connection that is closed without an answer, an answer that is shorter than it
# says, one that is shorter than asked for and says so, and one that stops halfway for a while.
FAULTS = ("403", "500", "reset", "cut", "truncated", "slow")
_CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError"}
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
# The same in every run: a corpus depends on the time of change of large files.
_CHANGED = "Mon, 01 Jan 2024 00:00:00 GMT"


class FaultyStore(ThreadingHTTPServer):
    """A store on the loopback interface whose buckets are the folders of `folder`.

    Attributes:
        every: one of so many requests fails, at random; 0 answers all.
        kinds: the faults that are drawn.
        refused: a part of the keys that are refused with 403 whatever `every` is; empty for none.
        slow: seconds for which a slow answer stops.
        requests: the number of requests since `reset`.
        faults: the number of faults of each kind since then.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, seed: int, slow: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.slow, self.every, self.kinds, self.refused = folder, slow, 0, FAULTS, ""
        self._rng, self._guard = random.Random(seed), threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Sets the counts to zero."""
        self.requests, self.faults = 0, Counter[str]()

    def fault(self, key: str) -> str | None:
        """Draws the fault of a request for a key."""
        with self._guard:
            self.requests += 1
            if self.refused and self.refused in key:
                kind = "403"
            elif self.every and self._rng.random() < 1 / self.every:
                kind = self._rng.choice(self.kinds)
            else:
                return None
            self.faults[kind] += 1
            return kind

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing about connections that it or a killed client breaks."""

    def s3(self, key: str) -> str:
        """Returns the URI of a key or folder by S3's protocol."""
        return f"s3://key:secret@{key}?scheme=http&endpoint_override=127.0.0.1:{self.server_port}&region=us-east-1"

    def http(self, key: str) -> str:
        """Returns the address of a key by plain HTTP."""
        return f"http://127.0.0.1:{self.server_port}/{key}"


@contextmanager
def serving(folder: Path, seed: int, slow: float) -> Iterator[FaultyStore]:
    """Runs a store for the length of the block."""
    server = FaultyStore(folder, seed, slow)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FaultyStore
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        key, query = unquote(address.path).strip("/"), parse_qs(address.query)
        fault = self.server.fault(f"{key}/{query['prefix'][0]}" if "prefix" in query else key)
        if fault in ("403", "500"):
            self._refuse(int(fault))
        elif fault == "reset":
            self.close_connection = True
        elif "list-type" in query:
            self._send(200, self._listing(key, query), fault)
        elif (path := self.server.folder / key).is_file():
            self._object(path, fault)
        elif path.is_dir() and "/" not in key:
            self._send(200, b"", fault)
        else:
            self._refuse(404)

    def _object(self, path: Path, fault: str | None) -> None:
        whole = path.read_bytes()
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        if found is None:
            self._send(200, whole, fault)
            return
        start = int(found[1])
        end = min(int(found[2] or len(whole)), len(whole) - 1)
        self._send(206, whole[start : end + 1], fault, (start, len(whole)))

    def _listing(self, bucket: str, query: dict[str, list[str]]) -> bytes:
        """Lists the keys of a bucket below a prefix, in one page."""
        root, prefix = self.server.folder / bucket, query.get("prefix", [""])[0]
        keys = sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;0&quot;</ETag><Size>{(root / key).stat().st_size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{contents.count('<Key>')}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        ).encode()

    def _refuse(self, status: int) -> None:
        code = _CODES[status]
        body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
        self._send(status, body.encode(), None)

    def _send(self, status: int, body: bytes, fault: str | None, place: tuple[int, int] | None = None) -> None:
        if fault == "truncated" and self.command == "GET":
            body = body[: len(body) // 2]
        self.send_response(status)
        self.send_header("Content-Type", "application/xml" if place is None else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", _CHANGED)
        if place is not None:
            self.send_header("Content-Range", f"bytes {place[0]}-{place[0] + max(len(body) - 1, 0)}/{place[1]}")
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2
        self.wfile.write(body[:half])
        if fault == "cut":
            self.close_connection = True
            return
        if fault == "slow":
            self.wfile.flush()
            time.sleep(self.server.slow)
        self.wfile.write(body[half:])
