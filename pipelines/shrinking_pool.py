"""Images of a source through `fastselfie.pipelines.shrinking` in a pool of processes, given out in their order.

One process reads, in threads, so that what a source keeps is kept once; the others decode. A thread takes a few images
from reading to their results. The order of results is that of the source whatever the number of processes.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from PIL import Image

from fastselfie.errors import LocalError
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.shrinking import Shrinking, make_ready
from fastselfie.pipelines.source import EncodedImages

_CHUNK = 8
"""Images that go to a process at once: less waiting for each other, and memory for little."""
_PAUSES_S = (0.1, 0.4, 1.6)
"""Before a file of this machine is read again; remote storage has pauses of its own."""
_UNREADABLE = "cannot be read"
_FAILING_STORAGE = 32
"""Images in a row that cannot be read: then it is the storage, and they must not be left out one by one."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of image ``index``: its JPEG, ``copied`` where its pixels are its own, or the reason for none."""

    index: int
    bytes_read: int
    jpeg: bytes | None
    copied: bool
    reason: str


class ShrinkingPool:
    """Processes that shrink images; a context manager that leaves none of them behind.

    They are started anew (spawn): a fork of a process with threads, as torch and DALI have, may hang. They end by
    themselves when this process is killed.
    """

    def __init__(self, shrinking: Shrinking, workers: int) -> None:
        self._shrinking, self._workers = shrinking, workers
        self._stopping = threading.Event()
        self._processes = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_process
        )

    def __enter__(self) -> ShrinkingPool:
        # Started with SIGINT blocked, which they inherit: one that Ctrl-C met while it imports would print a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(self._workers):
                self._processes.submit(_begun)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._processes.shutdown(cancel_futures=True)

    def outcomes(self, images: EncodedImages, start: int) -> Generator[Outcome, None, None]:
        """Outcomes of images ``start`` to the last, in order. Memory holds those of a few chunks a process.

        Raises:
            LocalError: storage that fails for many images in a row, or a process that was killed.
        """
        remote = images.readers is not None
        step = 1 if remote else _CHUNK  # remote storage that is gone takes a minute an image, and a chunk's are in turn
        chunks = (range(first, min(first + step, len(images))) for first in range(start, len(images), step))
        # Twice the processes, so that one chunk is read while another is decoded.
        threads = max(2 * self._workers, images.readers or 0)
        unreadable = 0
        with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
            try:
                for outcome in _in_order(pool, lambda chunk: self._chunk(images, chunk), chunks, ahead=threads):
                    unreadable = unreadable + 1 if outcome.reason.startswith(_UNREADABLE) else 0
                    if unreadable == _FAILING_STORAGE:
                        raise LocalError(
                            f"{images.name(outcome.index)}: {outcome.reason}, and so it went with {unreadable} images"
                            " in a row: see to the storage and run the same command again"
                        )
                    yield outcome
            except BaseException:
                self._stopping.set()  # threads that wait to read again need not
                raise

    def _chunk(self, images: EncodedImages, chunk: range) -> list[Outcome]:
        """Reads and shrinks; runs in a thread."""
        read = [self._read(images, index) for index in chunk]
        try:
            results = self._processes.submit(_make_all_ready, read, self._shrinking).result()
        except BrokenProcessPool:
            raise LocalError(
                f"a process was killed, perhaps for want of memory, at {images.name(chunk[0])} or up to {_CHUNK - 1}"
                " images after it: run the same command again, with fewer --workers"
            ) from None
        except MemoryError:
            raise LocalError(f"{images.name(chunk[0])}: no memory is left; take fewer --workers") from None
        outcomes = []
        for index, data, (jpeg, copied, reason) in zip(chunk, read, results, strict=True):
            given = data if isinstance(data, bytes) else b""
            packed = None if reason else jpeg or given
            outcomes.append(Outcome(index=index, bytes_read=len(given), jpeg=packed, copied=copied, reason=reason))
        return outcomes

    def _read(self, images: EncodedImages, index: int) -> bytes | str:
        """Bytes, or the reason why there are none."""
        for pause_s in (*(_PAUSES_S if images.readers is None else images.pauses_s), None):
            try:
                return images.read(index)
            except BadImage as error:
                return str(error)
            except OSError as error:
                if pause_s is None or self._stopping.wait(pause_s):
                    return f"{_UNREADABLE} ({error.strerror or error})"
        raise AssertionError


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[range], list[T]], chunks: Iterator[range], ahead: int
) -> Iterator[T]:
    """Results of all chunks in order, with no more than ``ahead`` of them begun."""
    begun: deque[Future[list[T]]] = deque()
    try:
        for chunk in chunks:
            begun.append(pool.submit(work, chunk))
            if len(begun) == ahead:
                yield from begun.popleft().result()
        while begun:
            yield from begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


def _make_all_ready(read: list[bytes | str], shrinking: Shrinking) -> list[tuple[bytes | None, bool, str]]:
    """A JPEG, or None for the bytes as they are; whether its pixels are copied; and the reason why it is rejected. Runs
    in a process of the pool."""
    results: list[tuple[bytes | None, bool, str]] = []
    for data in read:
        if isinstance(data, str):
            results.append((None, False, data))
            continue
        try:
            jpeg, copied = make_ready(data, shrinking)
        except BadImage as error:
            results.append((None, False, str(error)))
        else:
            results.append((None if jpeg is data else jpeg, copied, ""))
    return results


def _begun() -> None:
    """A first task for each process: the executor starts one at a task that finds none idle."""


def _begin_process() -> None:
    """In a new process of the pool: Ctrl-C is its parent's business, and it does not outlive that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # Pillow's, of odd metadata
    Image.MAX_IMAGE_PIXELS = None  # `shrink` has a limit of its own, and says it in its own words
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
