"""Packed shards behind HTTP: what an image costs, what a latency costs, and what an outage does.

A server on this machine serves --data; `fastselfie.pipelines.loader` loads random resized crops of 224 pixels from it,
as uint8. ``rates``: at each of --latency-ms, requests and bytes an image, and images a second, medians of rounds that
begin with nothing ahead. ``outages``: in the middle the server is silent (its process stopped, connections kept) or
away (killed) for some seconds, or for good, with an ``s`` and a ``-`` in --outages: ``silent 40s``, ``away -``.

    python -m bench.storage --data SHARDS --out bench/results/storage_cpu.json
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.file_server import serving
from bench.loader_sides import SIZE
from bench.measure import summary, write
from fastselfie.errors import UserError
from fastselfie.pipelines import Loader, loader
from fastselfie.pipelines.allotment import cores
from fastselfie.pipelines.shards import Shards
from fastselfie.pipelines.sources import open_source

_CPU = torch.device("cpu")


def rate(folder: Path, latency_s: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Images a second and the cost of an image at one latency."""
    batch, batches, seconds, counts = arguments.batch_size, arguments.batches, [], []
    with serving(folder, latency_s) as server:
        loaded = loader(server.url, batch_size=batch, size=SIZE, dtype=torch.uint8, threads=arguments.threads)
        for first in range(0, arguments.rounds * batches, batches):
            counts.append(server.counts())
            started = time.perf_counter()
            for images, _ in loaded.steps(first, first + batches):
                assert len(images) == batch
            seconds.append(time.perf_counter() - started)
        counts.append(server.counts())
    count = batch * batches * arguments.rounds
    spent = {name: (counts[-1][name] - counts[0][name]) / count for name in counts[0]}
    return {
        "latency_ms": 1e3 * latency_s, "requests_an_image": spent["requests"], "bytes_an_image": spent["bytes"],
        "images_per_second": summary(seconds, batch * batches),
    }  # fmt: skip


def outage(folder: Path, kind: str, seconds: float | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """What one outage does to a loop; ``seconds`` None: the server does not come back."""
    with serving(folder) as server:
        break_off, come_back = (server.silence, server.speak) if kind == "silent" else (server.kill, server.start)
        batches = loader(
            server.url, batch_size=arguments.batch_size, size=SIZE, dtype=torch.uint8, threads=arguments.threads
        )
        longest_s, said, ended_after_s = 0.0, None, None
        rounds = _rounds(batches, arguments.batches)
        _longest_wait_s(rounds, arguments.around_s)
        broken = time.perf_counter()
        break_off()
        back = None if seconds is None else threading.Timer(seconds, come_back)
        if back is not None:
            back.start()
        try:
            longest_s = _longest_wait_s(rounds, (math.inf if seconds is None else seconds) + arguments.around_s)
        except UserError as error:
            said, ended_after_s = str(error), time.perf_counter() - broken
        if back is not None:
            back.join()
        refused = len(batches.refused)
    return {
        "kind": kind, "seconds": seconds, "longest_wait_s": longest_s, "refused": refused, "said": said,
        "ended_after_s": ended_after_s,
    }  # fmt: skip


def _rounds(batches: Loader, count: int) -> Iterator[Iterator[object]]:
    """Some batches after others, without end; after each nothing is left to read, for which a process would wait."""
    return (batches.steps(first, first + count) for first in itertools.count(step=count))


def _longest_wait_s(rounds: Iterator[Iterator[object]], seconds: float) -> float:
    """Of whole rounds that take so many seconds together."""
    longest_s, began = 0.0, time.perf_counter()
    before = began
    while before < began + seconds:
        for _ in next(rounds):
            now = time.perf_counter()
            longest_s, before = max(longest_s, now - before), now
    return longest_s


def _outage(text: str) -> tuple[str, float | None]:
    found = re.fullmatch(r"(silent|away) (?:([0-9.]+)s|-)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: must be like 'silent 40s' or 'away -'")
    return found[1], float(found[2]) if found[2] else None


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both tables."""
    if importlib.util.find_spec("aiohttp") is None:
        raise UserError("what serves and reads shards is not installed: pip install 'fastselfie[http]'")
    images = open_source(str(arguments.data), SIZE).train
    if not isinstance(images, Shards):
        raise UserError(f"--data: {arguments.data} holds no packed shards; fastselfie prepare makes them")
    return {
        "settings": {
            "images": len(images), "mean_bytes": sum(len(images.read(i)) for i in range(len(images))) / len(images),
            **{name: getattr(arguments, name) for name in ("threads", "batch_size", "batches")},
        },
        "rates": [rate(arguments.data, latency_ms / 1e3, arguments) for latency_ms in arguments.latency_ms],
        "outages": [outage(arguments.data, kind, seconds, arguments) for kind, seconds in arguments.outages],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="packed shards on this machine")
    parser.add_argument("--latency-ms", type=float, nargs="*", default=[0.0, 50.0, 200.0])
    parser.add_argument(
        "--outages", type=_outage, nargs="*",
        default=[(kind, seconds) for seconds in (3.0, 40.0, None) for kind in ("silent", "away")],
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=6, help="of a round")
    parser.add_argument("--around-s", type=float, default=5.0, help="seconds of loading before an outage and after it")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    try:
        result = measure(arguments)
    except (UserError, OSError) as error:
        sys.exit(f"storage: {error}")
    write(arguments.out, result, _CPU)
    for row in result["rates"]:
        print(
            f"{row['latency_ms']:4.0f} ms: {row['images_per_second']['median']:.0f} images/s,"
            f" {row['requests_an_image']:.3f} requests and {row['bytes_an_image']:.0f} bytes an image"
        )
    for row in result["outages"]:
        lasting = "for good" if row["seconds"] is None else f"for {row['seconds']:g} s"
        went = f"the longest wait was {row['longest_wait_s']:.1f} s, {row['refused']} images were refused"
        ended = f"ended after {row['ended_after_s']:.1f} s: {row['said']}" if row["said"] else went
        print(f"{row['kind']} {lasting}: {ended}")


if __name__ == "__main__":
    main()
