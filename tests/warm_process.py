"""The process that `tests.warm_start` has commands forked from.

It has one thread, and none of what the tests themselves have imported, started or set. What is run is a script or
``python -m MODULE`` from there on, to the interpreter's own end: `_leave` says what is not taken down at it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import struct
import sys
import types
from typing import Any

TORCHRUN = "torchrun"
"""In place of a module: PyTorch's launcher."""
NUMBER = struct.Struct("<i")
"""The number of a process, and then its end as `os.waitpid` has it, through the pipe of its request."""
_LONGEST = 1 << 17  # of a request, in bytes
_IMPORTED = (
    "torch", "torch._dynamo", "torch.utils.tensorboard", "fastselfie.arguments", "fastselfie.cli",
    "fastselfie.training.pretrain", "fastselfie.evaluation.finetune", "fastselfie.report.page", "torch.distributed.run",
    "scipy.special",
)  # fmt: skip
_OWN = ("sys", "builtins", "__main__", "__mp_main__", "fastselfie")


def _serve(requests: socket.socket) -> list[str] | None:
    """Fork for each request: program and words in the new process, None in this one once nobody can ask any more."""
    tells: dict[int, int] = {}

    def reap(*_: object) -> None:
        while tells:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            os.write(tells[pid], NUMBER.pack(status))
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
            os.write(told, NUMBER.pack(pid))
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


def _leave(packages: list[str]) -> None:
    """An interpreter's end unmakes every object of every package, here after it has copied the pages that they share
    with the process forked from: three quarters of the time of a short run. Garbage of the command's own, its threads,
    what FastSelfie's modules hold and what libraries do at a process's end are left to happen; packages stay."""
    gc.collect()
    kept: list[object] = [sys.modules.pop(name, None) for name in packages]
    kept.append(kept)  # a cycle, which nobody collects once it is frozen
    gc.freeze()


def _main() -> None:
    packages: list[str] = []
    atexit.register(_leave, packages)  # the first that is registered is the last that is called
    for module in _IMPORTED:
        importlib.import_module(module)
    packages += [name for name in sys.modules if name.partition(".")[0] not in _OWN]
    assert len(os.listdir("/proc/self/task")) == 1, "a thread is not forked, and locks that it holds stay locked"
    gc.freeze()  # pages that the collector does not touch stay shared
    words = _serve(socket.socket(fileno=int(sys.argv[1])))
    if words is None:
        return
    program, *sys.argv[1:] = words
    if program == TORCHRUN:
        importlib.import_module("torch.distributed.run").main(sys.argv[1:])
    elif program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        # As the interpreter has it, in a main module that processes which multiprocessing starts find too.
        sys.modules["__main__"] = sys.modules["__mp_main__"] = types.ModuleType("__main__")
        runpy._run_module_as_main(program)  # type: ignore[attr-defined]


if __name__ == "__main__":
    _main()
