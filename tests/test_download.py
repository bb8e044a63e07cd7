"""The download against a real server on this machine: whole, wrong, cut short, and not there at all."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fastselfie.errors import UserError
from fastselfie.pipelines import download
from fastselfie.pipelines.download import CIFAR10_SHA256, cache_folder, cifar10_archive

CONTENTS = bytes(range(256)) * 10_000  # more than one chunk
SHA256 = hashlib.sha256(CONTENTS).hexdigest()


class Handler(BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        if self.path == "/gone.tar.gz":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/nosize.tar.gz":
            self.send_header("Content-Length", str(len(CONTENTS)))
        self.end_headers()
        self.wfile.write(CONTENTS[: -1 if self.path == "/short.tar.gz" else None])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requests = 0
    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetched(cache: Path, url: str, sha256: str = SHA256) -> Path:
    """`cifar10_archive` with another archive, kept in ``cache``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "cache_folder", lambda: cache)
        patch.setattr(download, "CIFAR10_URL", url)
        patch.setattr(download, "CIFAR10_SHA256", sha256)
        return cifar10_archive()


@pytest.mark.parametrize("name", ["whole.tar.gz", "nosize.tar.gz"])
def test_downloads_once(name: str, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "not" / "yet"
    archive = fetched(cache, f"{server}/{name}")
    assert archive.read_bytes() == CONTENTS
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert all(part in said.err for part in (server, str(archive), "3 MB" if name == "whole.tar.gz" else "unknown"))
    assert fetched(cache, f"{server}/{name}") == archive
    assert Handler.requests == 1
    assert list(cache.iterdir()) == [archive]


def test_damaged_copy_is_fetched_again(server: str, tmp_path: Path) -> None:
    (tmp_path / "whole.tar.gz").write_bytes(CONTENTS[:1000])
    assert fetched(tmp_path, f"{server}/whole.tar.gz").read_bytes() == CONTENTS


@pytest.mark.parametrize(
    ("name", "sha256", "message"),
    [
        ("whole", CIFAR10_SHA256, f"SHA-256 {SHA256}, not the official"),
        ("short", SHA256, "SHA-256|IncompleteRead"),
        ("gone", SHA256, "404"),
    ],
)
def test_wrong_answers_leave_nothing(name: str, sha256: str, message: str, server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fetched(tmp_path, f"{server}/{name}.tar.gz", sha256)
    assert "give --data FILE" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_bad_download_keeps_what_is_there(server: str, tmp_path: Path) -> None:
    (tmp_path / "short.tar.gz").write_bytes(b"older")
    with pytest.raises(UserError):
        fetched(tmp_path, f"{server}/short.tar.gz")
    assert [entry.name for entry in tmp_path.iterdir()] == ["short.tar.gz"]
    assert (tmp_path / "short.tar.gz").read_bytes() == b"older"


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.tar.gz"
        with pytest.raises(UserError, match="cannot be downloaded"):
            fetched(tmp_path, url)
    assert not list(tmp_path.iterdir())


def test_cache_that_is_no_folder(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetched(tmp_path / "file", f"{server}/whole.tar.gz")


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fastselfie"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == tmp_path / "home" / ".cache" / "fastselfie"
