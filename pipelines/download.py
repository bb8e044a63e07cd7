"""Fetches the official CIFAR-10 archive once, and checks it on every use."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from fastselfie.errors import UserError

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
_TIMEOUT_S = 30
_CHUNK_BYTES = 1 << 20


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/fastselfie``, or ``~/.cache/fastselfie``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "fastselfie"


def cifar10_archive() -> Path:
    """The archive's place in `cache_folder`, downloaded (170 MB) unless a whole copy is there already.

    Raises:
        UserError: no network, no room, or not the file that `CIFAR10_SHA256` belongs to. Nothing half-written is left.
    """
    folder, url, sha256 = cache_folder(), CIFAR10_URL, CIFAR10_SHA256
    target = folder / url.rsplit("/", 1)[-1]
    remedy = "fetch it yourself and give --data FILE, or use --data synthetic"
    try:
        if target.is_file():
            with target.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    return target
        folder.mkdir(parents=True, exist_ok=True)
        found = _download(url, target, sha256)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise UserError(f"{url} cannot be downloaded to {folder} ({error or type(error).__name__}): {remedy}") from None
    if found != sha256:
        raise UserError(f"{url} gave a file with SHA-256 {found}, not the official {sha256}: {remedy}")
    return target


def _download(url: str, target: Path, sha256: str) -> str:
    """The SHA-256 of what ``url`` gives; it becomes ``target`` only if that is ``sha256``."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
        length = response.headers.get("Content-Length")
        size = f"{int(length) / 1e6:.0f} MB" if length else "size unknown"
        print(f"downloading {url} ({size}) to {target}", file=sys.stderr)
        # Its own file for each process: several may do this at the same time, and each renames a whole one.
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, suffix=".part", delete=False) as part:
            try:
                digest = hashlib.sha256()
                while chunk := response.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    part.write(chunk)
                part.close()
                if digest.hexdigest() == sha256:
                    os.replace(part.name, target)
                return digest.hexdigest()
            finally:
                Path(part.name).unlink(missing_ok=True)
