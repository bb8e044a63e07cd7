"""Commands in processes that need not import torch: each is forked from one that has, and that has done nothing else.

Most of what a command of these tests costs is the import, three seconds of a core's time. The process forked from has
one thread, and none of what the tests themselves have imported, started or set. What is run is ``python -m fastselfie``
from there on, to the interpreter's own end.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_TORCHRUN, _PROGRAM = "torchrun", str(ROOT / "tests" / "forked_command.py")
_NUMBER = struct.Struct("<i")
_LONGEST = 1 << 17  # of a request, in bytes
_IMPORTED = (
    "torch", "torch._dynamo", "torch.utils.tensorboard", "fastselfie.arguments", "fastselfie.cli",
    "fastselfie.training.pretrain", "fastselfie.evaluation.finetune", "fastselfie.report.page", "torch.distributed.run",
)  # fmt: skip


def environment() -> dict[str, str]:
    """This process's, with one thread and without what a terminal, an outer torchrun or the kernels' tests add."""
    dropped = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FORCE_COLOR", "TTY_COMPATIBLE"}
    dropped.add("TRITON_INTERPRET")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120"}


class Forked:
    """A command that runs, with what the tests use of `subprocess.Popen`.

    Args:
        processes: with 2 or more PyTorch's launcher runs, which forks that many in place of starting them.
    """

    def __init__(self, words: Sequence[str], cwd: Path, processes: int = 1) -> None:
        launcher = [
            "--standalone",
            "--nproc-per-node",
            str(processes),
            "--start-method",
            "fork",
            "--run-path",
            _PROGRAM,
        ]
        self.args = [*words] if processes == 1 else [_TORCHRUN, *launcher, *words]
        self.returncode: int | None = None
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._told, tells = os.pipe()
        request = json.dumps({"words": self.args, "cwd": str(cwd), "environment": environment()}).encode()
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
        data = os.read(self._told, _NUMBER.size)
        assert data, "the process that is forked from has died"
        return int(_NUMBER.unpack(data)[0])

    def _ended(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(self._number())
        os.close(self._told)


@cache
def _server() -> socket.socket:
    """The process that is forked from; it ends with this one, as it hears nothing more."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.warm_start", str(theirs.fileno())]
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


def _serve(requests: socket.socket) -> list[str] | None:
    """Fork for each request: its words in the new process, None in this one once nobody can ask any more."""
    tells: dict[int, int] = {}

    def reap(*_: object) -> None:
        while tells:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            os.write(tells[pid], _NUMBER.pack(status))
            os.close(tells.pop(pid))

    signal.signal(signal.SIGCHLD, reap)
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, _LONGEST, 3)
        if not data:
            return None
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            for told in tells.values():
                os.close(told)
            words = _become(json.loads(data), *descriptors)
        else:
            out, err, told = descriptors
            tells[pid] = told
            os.write(told, _NUMBER.pack(pid))
            os.close(out)
            os.close(err)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        if pid == 0:
            return words


def _become(request: dict[str, Any], out: int, err: int, told: int) -> list[str]:
    """A process as a shell would start it; its words."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    for descriptor in (out, err, told):
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    words: list[str] = request["words"]
    return words


def _main() -> None:
    for module in _IMPORTED:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "a thread is not forked, and locks that it holds stay locked"
    gc.freeze()  # pages that the collector does not touch stay shared
    words = _serve(socket.socket(fileno=int(sys.argv[1])))
    if words is None:
        return
    if words[:1] == [_TORCHRUN]:
        importlib.import_module("torch.distributed.run").main(words[1:])
    else:
        sys.argv[1:] = words
        runpy.run_module("fastselfie", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
