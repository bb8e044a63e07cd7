"""A folder behind HTTP, parts of files, a latency, a count of what was asked; `FileServer` runs this very file."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_COUNTS = "/counts"


def application(folder: Path, latency_s: float) -> web.Application:
    """Serves ``folder`` below its name, each answer after ``latency_s``; at /counts requests and bytes so far."""
    counts = {"requests": 0, "bytes": 0}

    @web.middleware  # type: ignore[untyped-decorator]
    async def late(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path != _COUNTS:
            await asyncio.sleep(latency_s)
        return await handler(request)

    async def count(request: web.Request, response: web.StreamResponse) -> None:
        if request.path != _COUNTS:
            counts["requests"] += 1
            counts["bytes"] += (response.content_length or 0) * (request.method == "GET")

    async def told(request: web.Request) -> web.Response:
        return web.json_response(counts)

    served = web.Application(middlewares=[late])
    served.on_response_prepare.append(count)
    served.router.add_get(_COUNTS, told)
    served.router.add_static(f"/{folder.name}", folder, show_index=True)
    return served


class FileServer:
    """The server in a process of its own, which may be stopped, gone on with, killed and started anew."""

    def __init__(self, folder: Path, latency_s: float = 0.0) -> None:
        self._folder, self._latency_s, self._port = folder, latency_s, 0
        self.start()

    @property
    def url(self) -> str:
        """Of the folder."""
        return f"http://127.0.0.1:{self._port}/{self._folder.name}"

    def start(self) -> None:
        """At the same port as before. Returns once it answers."""
        words = [str(self._folder), "--latency-s", str(self._latency_s), "--port", str(self._port)]
        self._process = subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        with self._process.stdout as told:
            self._port = int(told.readline())

    def silence(self) -> None:
        """Connections stay, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def speak(self) -> None:
        """Go on after `silence`."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """At once, stopped or not."""
        self._process.kill()
        self._process.wait()

    def counts(self) -> dict[str, int]:
        """Requests and bytes of contents since it was started."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{_COUNTS}") as answer:
            counts: dict[str, int] = json.load(answer)
        return counts


@contextmanager
def serving(folder: Path, latency_s: float = 0.0) -> Iterator[FileServer]:
    """A server while the context lasts."""
    server = FileServer(folder, latency_s)
    try:
        yield server
    finally:
        server.kill()


async def _serve(arguments: Any) -> None:
    runner = web.AppRunner(application(arguments.folder, arguments.latency_s), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", arguments.port)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free; which one is printed")
    asyncio.run(_serve(parser.parse_args()))
