"""Commands in processes that need not import torch: each is forked from one that has, and that has done nothing else.

Most of what a command of these tests costs is the import, three seconds of a core's time. `tests.warm_process` is what
is forked from.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.warm_process import NUMBER, TORCHRUN

ROOT = Path(__file__).parent.parent
_PROGRAM = str(ROOT / "tests" / "forked_command.py")


def environment() -> dict[str, str]:
    """This process's, with one thread, and without what a terminal, an outer torchrun or the kernels' tests add."""
    dropped = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FORCE_COLOR", "TTY_COMPATIBLE"}
    dropped.add("TRITON_INTERPRET")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    kept["PYTHONFAULTHANDLER"] = "1"  # for `tests.command.end`
    return kept | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120"}


class Forked:
    """A command that runs, with what the tests use of `subprocess.Popen`.

    Args:
        processes: with 2 or more PyTorch's launcher runs, which forks that many in place of starting them.
        program: the module that is run, or the path of a script, which it is with ``processes``.
        variables: of its environment, beside those of `environment`.
    """

    def __init__(
        self,
        words: Sequence[str],
        cwd: Path,
        processes: int = 1,
        program: str = "fastselfie",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        script = _PROGRAM if program == "fastselfie" else program
        number = str(processes)
        launcher = ["--standalone", "--nproc-per-node", number, "--start-method", "fork", "--run-path", script]
        self.args = [program, *words] if processes == 1 else [TORCHRUN, *launcher, *words]
        self.returncode: int | None = None
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._told, tells = os.pipe()
        variables = environment() | dict(variables or {})
        request = json.dumps({"words": self.args, "cwd": str(cwd), "environment": variables}).encode()
        socket.send_fds(_server(), [request], [self._out.fileno(), self._err.fileno(), tells])
        os.close(tells)
        self.pid = self._number()

    def poll(self) -> int | None:
        """Its exit status as `subprocess` has it, once it has ended."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self._ended()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """See `send_signal`."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end: what it has printed.

        Raises:
            subprocess.TimeoutExpired: it has not ended.
        """
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self._ended()
        for file in (self._out, self._err):
            file.seek(0)
        return self._out.read().decode(), self._err.read().decode()

    def _number(self) -> int:
        data = os.read(self._told, NUMBER.size)
        assert data, "the process that is forked from has died"
        return int(NUMBER.unpack(data)[0])

    def _ended(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(self._number())
        os.close(self._told)


@cache
def _server() -> socket.socket:
    """The process that is forked from; it ends with this one, as it hears nothing more."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.warm_process", str(theirs.fileno())]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours
