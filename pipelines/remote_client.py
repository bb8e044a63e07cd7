"""fsspec's clients as a loader needs them: enough connections, an end to waiting, and parts of files in one request.

What the user has put into fsspec's configuration (``~/.config/fsspec``, ``FSSPEC_S3_...``) comes before all of it.
"""

from __future__ import annotations

import re
from typing import Any

from fastselfie.errors import UserError

READERS = 32  # reads at once, which hide a latency of some 30 ms
_PATIENCE_S, _SLOWEST = 30.0, 1e5  # for an answer, and bytes a second below which nobody waits for the rest
_PROTOCOL = re.compile(r"(?:^|::)([a-z0-9+.-]+)://")
_EXTRAS = {"s3": "s3", "s3a": "s3", "http": "http", "https": "http"}


def client(url: str) -> tuple[Any, str]:
    """A file system of fsspec's, and where ``url`` lies in it.

    Raises:
        UserError: fsspec knows no such URL or lacks a package for it.
    """
    from fsspec import url_to_fs  # no local run needs it

    try:
        options = {protocol: _options(protocol) for protocol in _PROTOCOL.findall(url) if protocol in _EXTRAS}
        return url_to_fs(url, **options)
    except ImportError as error:
        named = next((_EXTRAS[protocol] for protocol in _PROTOCOL.findall(url) if protocol in _EXTRAS), None)
        remedy = str(error) if named is None else f"what reads it is not installed: pip install 'fastselfie[{named}]'"
        raise UserError(f"{url}: {remedy}") from None
    except (ValueError, TypeError) as error:  # TypeError: of options in the configuration
        raise UserError(f"{url}: {error}") from None


def ask(system: Any, method: str, *arguments: object, patience_s: float | None = None, **named: object) -> Any:
    """The answer of a method of ``system``. Clients try again by themselves, one in another, for half an hour.

    Raises:
        TimeoutError: there is none in ``patience_s``, by default half a minute. And whatever the client raises.
    """
    if not system.async_impl:
        return getattr(system, method)(*arguments, **named)
    from fsspec.asyn import sync

    return sync(system.loop, getattr(system, f"_{method}"), *arguments, timeout=patience_s or _PATIENCE_S, **named)


def read_part(system: Any, path: str, start: int, size: int) -> bytes | None:
    """``size`` bytes from ``start`` on, fewer where the answer has fewer; None where the server knows no parts.

    Whatever the client raises, it raises.
    """
    if not size:
        return b""
    if "http" in system.protocol:
        return _read_http(system, path, start, size)
    # By name: the second argument of s3fs is a version.
    data = ask(system, "cat_file", path, start=start, end=start + size, patience_s=_PATIENCE_S + size / _SLOWEST)
    return bytes(data) if len(data) <= size else None


def _read_http(system: Any, path: str, start: int, size: int) -> bytes | None:
    """As a file, which looks at the answer first: `cat_file` takes a whole shard from a server without ranges."""
    limit = {}
    if system.client_kwargs.get("timeout") == _timeout():  # ours, and not the user's
        limit = {"timeout": _timeout(total_s=_PATIENCE_S + size / _SLOWEST)}
    with system.open(path, "rb", block_size=size, cache_type="none", size=start + size, **limit) as file:
        file.seek(start)
        try:
            return bytes(file.read(size))
        except ValueError as error:
            if "range requests" not in str(error):
                raise
            return None


def _options(protocol: str) -> dict[str, Any]:
    """Ours beside the user's."""
    from fsspec import get_filesystem_class
    from fsspec.config import apply_config

    told = apply_config(get_filesystem_class(protocol), {})
    if _EXTRAS[protocol] == "s3":
        # botocore's pool has 10 connections, for which the other readers would wait.
        return {"config_kwargs": {"max_pool_connections": READERS} | told.get("config_kwargs", {})}
    return {"client_kwargs": {"timeout": _timeout()} | told.get("client_kwargs", {})}


def _timeout(total_s: float | None = None) -> Any:
    """Of HTTP's client, which allows five minutes for a whole answer: long for a server that hangs, short for an index.

    ``total_s`` is for a server that sends a byte now and then.
    """
    from aiohttp import ClientTimeout

    return ClientTimeout(total=total_s, sock_connect=_PATIENCE_S, sock_read=_PATIENCE_S)
