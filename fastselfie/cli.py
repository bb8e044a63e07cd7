"""The command line: ``fastselfie COMMAND ...``. Every mistake of the user's ends in one line and exit status 2."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import fastselfie
from fastselfie.errors import LocalError, UserError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(words: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its status: 0 done, 2 refused, 128 + n stopped by signal n and saved."""
    code = status(sys.argv[1:] if words is None else words)
    if "WORLD_SIZE" in os.environ:
        # Everything is written and the process group is left. Seen once in about twenty runs of four processes: taking
        # the interpreter down then aborts ("terminate called without an active exception"), and torchrun reports it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def status(words: Sequence[str]) -> int:
    """Run a command; its exit status."""
    try:
        return _command(words[0] if words else "--help")(words[1:])
    except UserError as error:
        return _refuse(str(error), alone=isinstance(error, LocalError))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `fastselfie --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        return _refuse(f"{error.filename or 'the disk'}: cannot be written ({error.strerror}); make room and run again")


def _refuse(line: str, alone: bool = False) -> int:
    _say(line, alone)
    return 2


def _say(line: str, alone: bool = False) -> None:
    """One line on stderr: from one process a machine, or from any that met something ``alone``."""
    if alone or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"fastselfie: {line}", file=sys.stderr)


def _command(name: str) -> Callable[[Sequence[str]], int]:
    commands = {
        "pretrain": _pretrain, "finetune": _finetune, "probe": _probe, "protocol": _protocol, "report": _report,
        "export": _export, "render": _render, "prepare": _prepare, "doctor": _doctor, "demo": _demo,
        "--help": _help, "-h": _help, "--version": _version,
    }  # fmt: skip
    if name not in commands:
        there = ", ".join(word for word in commands if not word.startswith("-"))
        raise UserError(f"{name}: there is no such command; there are {there}")
    return commands[name]


# What a command needs is imported when it runs: help and refusals come without waiting for torch.


def _pretrain(words: Sequence[str]) -> int:
    from fastselfie.arguments import parse_pretrain

    config = parse_pretrain(words)
    from fastselfie.training.pretrain import pretrain

    return _trained(lambda: pretrain(config))


def _finetune(words: Sequence[str]) -> int:
    from fastselfie.arguments import parse_finetune

    config = parse_finetune(words)
    from fastselfie.evaluation.finetune import finetune

    return _trained(lambda: finetune(config))


def _probe(words: Sequence[str]) -> int:
    from fastselfie.arguments import parse_probe

    config = parse_probe(words)
    from fastselfie.evaluation.probe import probe

    probe(config)
    return 0


def _protocol(words: Sequence[str]) -> int:
    from fastselfie.protocol_arguments import parse_protocol

    asked = parse_protocol(words)
    from fastselfie.protocol.protocol import protocol

    return _trained(lambda: protocol(asked))


def _report(words: Sequence[str]) -> int:
    from fastselfie.arguments import ReportArguments, parse

    arguments = parse(ReportArguments, words, "fastselfie report")
    from fastselfie.protocol.record import is_protocol

    if any(is_protocol(path) for path in arguments.runs):
        return _report_protocol(arguments.runs, arguments.out)
    from fastselfie.report.page import report

    report(arguments.runs, arguments.out)
    print(f"{arguments.out}: written; every figure is also a PNG in its run's figures/", file=sys.stderr)
    return 0


def _export(words: Sequence[str]) -> int:
    from fastselfie.arguments import ExportArguments, parse

    asked = parse(ExportArguments, words, "fastselfie export")
    from fastselfie.evaluation.export import export

    print(export(asked.run, asked.to))
    return 0


def _report_protocol(folders: Sequence[Path], out: Path) -> int:
    if len(folders) > 1:
        raise UserError("fastselfie report: a protocol has a page of its own; name its folder alone")
    from fastselfie.protocol.page import write_report
    from fastselfie.protocol.record import read_protocol

    write_report(read_protocol(folders[0]), out)
    print(f"{out}: written; the protocol's tables and figures by themselves lie in its folder", file=sys.stderr)
    return 0


def _render(words: Sequence[str]) -> int:
    from fastselfie.arguments import RenderArguments, parse

    asked = parse(RenderArguments, words, "fastselfie render")
    from rich.console import Console
    from rich.progress import Progress

    from fastselfie.pipelines.scene_files import write_scenes

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rendering", total=asked.train + asked.test)
        write_scenes(
            asked.out, size=asked.size, train=asked.train, test=asked.test, seed=asked.seed,
            progress=lambda scenes: bar.advance(task, scenes),
        )  # fmt: skip
    print(f"{asked.out}: {asked.train} scenes in train/, {asked.test} in val/")
    return 0


def _prepare(words: Sequence[str]) -> int:
    from fastselfie.arguments import PrepareArguments, parse

    asked = parse(PrepareArguments, words, "fastselfie prepare")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fastselfie.pipelines.prepare import open_encoded, prepare
    from fastselfie.pipelines.shrinking import Shrinking

    source = open_encoded(asked.source)
    shrinking = Shrinking(size=asked.size, side=asked.side, quality=asked.quality, recode=asked.recode)
    columns = (TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, speed_estimate_period=120, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("packing", total=None)
        prepared = prepare(
            source, asked.folder, shrinking=shrinking, shard_bytes=asked.shard_mb << 20, workers=asked.workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    print(f"{asked.folder}: {prepared.told()}")
    return 0


def _doctor(words: Sequence[str]) -> int:
    from fastselfie.arguments import DoctorArguments, parse

    asked = parse(DoctorArguments, words, "fastselfie doctor")
    from fastselfie.doctor import examine

    examine(asked)
    return 0


def _demo(words: Sequence[str]) -> int:
    from fastselfie.arguments import DemoArguments, parse

    out = parse(DemoArguments, words, "fastselfie demo").out
    from fastselfie.demo import demo

    return _trained(lambda: demo(out))


def _trained(work: Callable[[], object]) -> int:
    """Run ``work``; a run that a signal stopped says so and gives the signal's status."""
    from fastselfie.training.signals import Stopped

    try:
        work()
    except Stopped as stopped:
        _say(str(stopped))
        return stopped.status
    return 0


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
