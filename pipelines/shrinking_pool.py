"""Images of a source through `fastselfie.pipelines.shrinking` in a pool of processes, given out in their order.

One process reads, in threads, so that what a source keeps is kept once; the others decode. A thread takes a few images
from reading to their results. The order of results is that of the source whatever the number of processes.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import TracebackType
from typing import TypeVar

from fastselfie.errors import LocalError
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.shrinking import Shrinking
from fastselfie.pipelines.shrinking_process import ProcessEndedError, ShrinkingProcess
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

    Raises:
        LocalError: at entering it, where not all ``workers`` can be started.
    """

    def __init__(self, shrinking: Shrinking, workers: int) -> None:
        self._shrinking, self._workers = shrinking, workers
        self._stopping = threading.Event()
        self._processes: list[ShrinkingProcess] = []
        self._idle: queue.SimpleQueue[ShrinkingProcess] = queue.SimpleQueue()

    def __enter__(self) -> ShrinkingPool:
        try:
            self._start()
        except BaseException:  # Ctrl-C too, which is heard at the end of it
            self._stop()
            raise
        return self

    def _start(self) -> None:
        """With SIGINT blocked, which they inherit: one that Ctrl-C met while it imports would print a traceback."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            resource_tracker.ensure_running()  # else the first process starts it, which unblocks SIGINT
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            while len(self._processes) < self._workers:
                self._processes.append(ShrinkingProcess(self._shrinking))
                self._idle.put(self._processes[-1])
        except OSError as error:
            raise LocalError(
                f"--workers {self._workers}: {len(self._processes)} were started, and no more"
                f" ({error.strerror or error}); take fewer"
            ) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._stop()

    def _stop(self) -> None:
        for process in self._processes:
            process.stop()

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
        process = self._idle.get()
        try:
            results = process.shrink(read)
        except ProcessEndedError:
            raise LocalError(
                f"a process was killed, perhaps for want of memory, at {images.name(chunk[0])} or up to {_CHUNK - 1}"
                " images after it: run the same command again, with fewer --workers"
            ) from None
        except MemoryError:
            raise LocalError(f"{images.name(chunk[0])}: no memory is left; take fewer --workers") from None
        finally:
            self._idle.put(process)  # one that is no more as well: who waits for one is to hear of it
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
