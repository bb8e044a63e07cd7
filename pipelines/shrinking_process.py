"""A process that shrinks images, and the pipe to it.

Each has a pipe of its own, at which nothing else writes: whatever the moment at which the process is killed, the pipe
ends. The executor of `concurrent.futures` has one pipe for the results of all; when a process is killed in the middle
of a result, the others and the reader wait for its rest for ever.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import TypeAlias

from PIL import Image

from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.shrinking import Shrinking, make_ready

Shrunk: TypeAlias = tuple[bytes | None, bool, str]
"""A JPEG, or None for the bytes as they are; whether its pixels are copied; the reason why it is rejected, or none."""


class ProcessEndedError(Exception):
    """The process is no more: it was killed."""


class ShrinkingProcess:
    """Started anew (spawn): a fork of a process with threads, as torch and DALI have, may hang. It ends by itself when
    this process is killed.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, shrinking: Shrinking) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, its_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(its_end, shrinking), daemon=True)
        with contextlib.closing(its_end):  # once the process alone has it, it ends with the process
            self._process.start()

    def shrink(self, read: list[bytes | str]) -> list[Shrunk]:
        """What becomes of images that were ``read``, and of reasons why one was not. For one thread at a time.

        Raises:
            ProcessEndedError: it was killed.
            MemoryError: none is left, here or there.
        """
        try:
            self._pipe.send(read)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise ProcessEndedError from None
        except MemoryError:
            self._pipe.close()  # where in an answer the next one would begin to read, nobody knows
            raise
        if isinstance(answer, Exception):
            raise answer
        results: list[Shrunk] = answer
        return results

    def stop(self) -> None:
        """Wait for its end."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, shrinking: Shrinking) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is its parent's business
    warnings.simplefilter("ignore")  # Pillow's, of odd metadata
    Image.MAX_IMAGE_PIXELS = None  # `shrink` has a limit of its own, and says it in its own words
    with contextlib.suppress(EOFError, ConnectionError):  # the parent stopped it, or is killed
        while True:
            read = pipe.recv()
            answer: list[Shrunk] | Exception
            try:
                answer = [_shrunk(data, shrinking) for data in read]
            except Exception as error:
                error.add_note(traceback.format_exc())  # which does not travel by itself
                answer = error
            pipe.send(answer)


def _shrunk(data: bytes | str, shrinking: Shrinking) -> Shrunk:
    if isinstance(data, str):
        return None, False, data
    try:
        jpeg, copied = make_ready(data, shrinking)
    except BadImage as error:
        return None, False, str(error)
    return None if jpeg is data else jpeg, copied, ""
