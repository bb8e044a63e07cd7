"""A folder behind HTTP, on this machine: a server that counts what is asked and answers as badly as a test wants."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeAlias

Asked: TypeAlias = tuple[str, str, str]
"""Method, the file's name (empty: the listing), and the Range header or "-"."""


@dataclass(kw_only=True)
class Served:
    """A server and how it behaves.

    Attributes:
        folder: whose files. url: of it. ranges: whether parts of files are given. latency_s: before each answer.
        modified: when all files were, in seconds since 1970.
        status: of what is asked, its turn among all: an HTTP status instead of the answer; 0 cuts it in its middle, -1
            gives fewer bytes and calls them all, -2 never answers, -3 hangs up, -4 trickles for 8 seconds.
        asked: all requests. sent: bytes of all contents.
    """

    folder: Path
    url: str = ""
    ranges: bool = True
    latency_s: float = 0.0
    modified: int = 1_700_000_000
    status: Callable[[Asked, int], int] = lambda asked, turn: 200
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def count(self, method: str, ending: str) -> int:
        """Requests of that kind for files whose name so ends."""
        return sum(asked[0] == method and asked[1].endswith(ending) for asked in self.asked)


@contextmanager
def http_folder(folder: Path, port: int = 0, certificate: Path | None = None) -> Iterator[Served]:
    """Serve ``folder`` while the context lasts; over TLS with a certificate, in one file with its key."""
    served = Served(folder=folder)

    class Handler(_Handler):
        pass

    Handler.served = served
    server = _Server(("127.0.0.1", port), Handler)
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    served.url = f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_address[1]}/{folder.name}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        served.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False
    request_queue_size = 128  # of five, the other connections of a client that opens 32 wait for a second

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: who asked has gone."""


class _Handler(BaseHTTPRequestHandler):
    served: Served
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._answer(content=False)

    def do_GET(self) -> None:
        self._answer(content=True)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""

    def _answer(self, content: bool) -> None:
        served, name = self.served, self.path.split("/")[-1] if self.path.count("/") > 1 else ""
        asked = (self.command, name, self.headers.get("Range", "-"))
        with served.lock:
            served.asked.append(asked)
            turn = len(served.asked)
            served.at_once += 1
            served.most_at_once = max(served.most_at_once, served.at_once)
        try:
            time.sleep(served.latency_s)
            self._send(asked, served.status(asked, turn), content)
        finally:
            with served.lock:
                served.at_once -= 1

    def _send(self, asked: Asked, status: int, content: bool) -> None:
        served = self.served
        path = served.folder / asked[1]
        if status in (-2, -3):
            served.closing.wait(60 if status == -2 else 0)
            self.close_connection = True
            return
        if status >= 300 or not path.exists():
            self.send_error(404 if status == 200 else status)
            return
        data = path.read_bytes() if path.is_file() else self._listing()
        part, headers = data, dict[str, str]()
        match = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", asked[2])
        if match and served.ranges:
            first, last = int(match[1]), min(int(match[2]), len(data) - 1)
            part = data[first : last + 1]
            headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        cut = part[: len(part) // 2] if status in (0, -1) and content else part
        self.send_response(206 if headers else 200)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Type", "application/octet-stream" if path.is_file() else "text/html")
        self.send_header("Last-Modified", formatdate(served.modified, usegmt=True))
        self.send_header("Content-Length", str(len(cut) if status == -1 else len(part)))
        self.end_headers()
        if not content:
            return
        with served.lock:
            served.sent += len(cut)
        try:
            for at in range(80 if status == -4 else 0):  # what is left comes at once
                self.wfile.write(cut[at : at + 1])
                served.closing.wait(0.1)
            self.wfile.write(cut[80:] if status == -4 else cut)
        except OSError:  # who asked has seen enough
            self.close_connection = True
        if status == 0:
            self.close_connection = True

    def _listing(self) -> bytes:
        links = (f'<a href="{path.name}">{path.name}</a>' for path in sorted(self.served.folder.iterdir()))
        return "\n".join(links).encode()
