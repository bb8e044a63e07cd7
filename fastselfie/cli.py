"""The command line: ``fastselfie COMMAND ...``. Every mistake of the user's ends in one line and exit status 2."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TextIO

import fastselfie
from fastselfie.commands import COMMANDS
from fastselfie.errors import LocalError, UserError, lost_another
from fastselfie.failing import fail, let_others_speak

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(words: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its status: 0 done, 2 refused or failed, 128 + n stopped by signal n."""
    words = sys.argv[1:] if words is None else words
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files may be any bytes
    if "WORLD_SIZE" not in os.environ:
        sys.exit(status(words))
    try:
        code = status(words)
    except Exception as error:
        if lost_another(error):
            let_others_speak()
        traceback.print_exc()
        code = 1
    # Everything is written. Taking the interpreter down could abort ("terminate called without an active exception",
    # seen once in about twenty runs of four processes), and after an exception wait for processes that wait for this.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def status(words: Sequence[str]) -> int:
    """Run a command; its exit status."""
    try:
        code = _carried_out(words)
    except BrokenPipeError:  # the reader of our output has gone, as in `fastselfie --help | head`
        code = 141
    for stream in (sys.stdout, sys.stderr):
        _empty(stream)
    return code


def _carried_out(words: Sequence[str]) -> int:
    try:
        own = {"--help": _help, "-h": _help, "--version": _version}
        name = words[0] if words else "--help"
        code = (own.get(name) or _command(name))(words[1:])
        if sys.stdout is not None:
            sys.stdout.flush()  # a command that cannot say what it was asked for has failed
        return code
    except UserError as error:
        return _refuse(str(error), alone=isinstance(error, LocalError))
    except KeyboardInterrupt:
        return 130
    except PermissionError as error:
        if error.filename is None:
            raise
        return _refuse(f"{os.fsdecode(error.filename)}: {error.strerror}; see to its permissions, or name another")
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        return _refuse(f"{error.filename or 'the disk'}: cannot be written ({error.strerror}); make room and run again")


def _empty(stream: TextIO | None) -> None:
    """Write what waits in it, or let go of that: the interpreter would try again at its end, and change the status."""
    if stream is None:  # closed
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _refuse(line: str, alone: bool = False) -> int:
    fail(line, alone)
    return 2


def _command(name: str) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        raise UserError(f"{name}: there is no such command; there are {', '.join(COMMANDS)}")
    return COMMANDS[name]


def _version(words: Sequence[str]) -> int:
    print(f"fastselfie {fastselfie.__version__}")
    return 0


def _help(words: Sequence[str]) -> int:
    from fastselfie.recipes import RECIPES

    print(
        "usage: fastselfie COMMAND ...   (fastselfie COMMAND --help shows its options)\n\n"
        "  pretrain RECIPE [options]                        learn from unlabelled images: which patch belongs where?\n"
        "  finetune RECIPE (--from RUN|FILE | --scratch)... learn from labels and test\n"
        "  probe RECIPE --from RUN [options]                classify by what a network has learnt without labels\n"
        "  protocol RECIPE [options]                        both, for subsets and seeds: the paper's tables\n"
        "  report RUN... | PROTOCOL [--out FILE.html]       curves, tables and pictures of runs in one page\n"
        "  export RUN --to FILE.safetensors                 its ResNet-50v2 for plain PyTorch and timm\n"
        "  render --out DIR                                 write the synthetic scenes as JPEG files\n"
        "  prepare SRC DST                                  check images, shrink them and pack them into shards\n"
        "  doctor                                           what this machine has and what will be used\n"
        "  demo [--out DIR]                                 the whole story, small, on images that it makes itself\n\n"
        f"recipes: {', '.join(RECIPES)}"
    )
    return 0
