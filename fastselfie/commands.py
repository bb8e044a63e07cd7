"""What each command of the command line does: words in, exit status out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fastselfie.errors import UserError
from fastselfie.failing import say, speaks
from fastselfie.importing import importing

# What a command needs is imported when it runs: help and refusals come without waiting for torch.


def pretrain(words: Sequence[str]) -> int:
    from fastselfie.arguments import parse_pretrain

    config = parse_pretrain(words)
    with importing():
        from fastselfie.training.pretrain import pretrain

    return _trained(lambda: pretrain(config))


def finetune(words: Sequence[str]) -> int:
    from fastselfie.arguments import parse_finetune

    config = parse_finetune(words)
    with importing():
        from fastselfie.evaluation.finetune import finetune

    return _trained(lambda: finetune(config))


def probe(words: Sequence[str]) -> int:
    from fastselfie.arguments import parse_probe

    config = parse_probe(words)
    with importing():
        from fastselfie.evaluation.probe import probe

    probe(config)
    return 0


def protocol(words: Sequence[str]) -> int:
    from fastselfie.protocol_arguments import parse_protocol

    asked = parse_protocol(words)
    with importing():
        from fastselfie.protocol.protocol import protocol

    return _trained(lambda: protocol(asked))


def report(words: Sequence[str]) -> int:
    from fastselfie.arguments import parse
    from fastselfie.tool_arguments import ReportArguments

    arguments = parse(ReportArguments, words, "fastselfie report")
    with importing():
        from fastselfie.protocol.record import is_protocol

    protocols = [path for path in arguments.runs if is_protocol(path)]
    if protocols:
        if len(arguments.runs) > 1:
            raise UserError(f"{protocols[0]}: a protocol has a page of its own: name its folder alone, or leave it out")
        return _report_protocol(protocols[0], arguments.out)
    with importing():
        from fastselfie.report.page import report

    report(arguments.runs, arguments.out)
    print(f"{arguments.out}: written; every figure of a run is also a PNG in its figures/", file=sys.stderr)
    return 0


def export(words: Sequence[str]) -> int:
    from fastselfie.arguments import parse
    from fastselfie.tool_arguments import ExportArguments

    asked = parse(ExportArguments, words, "fastselfie export")
    with importing():
        from fastselfie.evaluation.export import export

    print(export(asked.run, asked.to))
    return 0


def _report_protocol(folder: Path, out: Path) -> int:
    with importing():
        from fastselfie.protocol.page import write_report
        from fastselfie.protocol.record import read_protocol

    write_report(read_protocol(folder), out)
    print(f"{out}: written; the protocol's tables and figures by themselves lie in its folder", file=sys.stderr)
    return 0


def render(words: Sequence[str]) -> int:
    from fastselfie.arguments import parse
    from fastselfie.tool_arguments import RenderArguments

    asked = parse(RenderArguments, words, "fastselfie render")
    with importing():
        from fastselfie.pipelines.scene_files import write_scenes
        from fastselfie.progress import meter

    with meter("rendering", asked.train + asked.test) as rendered:
        write_scenes(
            asked.out, size=asked.size, train=asked.train, test=asked.test, seed=asked.seed, progress=rendered.advance
        )
    print(f"{asked.out}: {asked.train} scenes in train/, {asked.test} in val/")
    return 0


def prepare(words: Sequence[str]) -> int:
    from fastselfie.arguments import parse
    from fastselfie.tool_arguments import PrepareArguments

    asked = parse(PrepareArguments, words, "fastselfie prepare")
    with importing():
        from fastselfie.pipelines.prepare import open_encoded, prepare
        from fastselfie.pipelines.restart_markers import require_numba
        from fastselfie.pipelines.shrinking import Shrinking
        from fastselfie.progress import meter

    if asked.recode == "markers":
        require_numba()
    source = open_encoded(asked.source)
    shrinking = Shrinking(size=asked.size, side=asked.side, quality=asked.quality, recode=asked.recode)
    try:
        with meter("packing") as packed:
            prepared = prepare(
                source, asked.folder, shrinking=shrinking, shard_bytes=asked.shard_mb << 20, workers=asked.workers,
                progress=packed.at,
            )  # fmt: skip
    except KeyboardInterrupt:
        print(f"{asked.folder}: stopped; the same command goes on after the last finished shard", file=sys.stderr)
        raise
    print(f"{asked.folder}: {prepared.told()}")
    return 0


def doctor(words: Sequence[str]) -> int:
    from fastselfie.arguments import parse
    from fastselfie.tool_arguments import DoctorArguments

    asked = parse(DoctorArguments, words, "fastselfie doctor")
    with importing():
        from fastselfie.doctor import examine

    examine(asked)
    return 0


def demo(words: Sequence[str]) -> int:
    from fastselfie.arguments import parse
    from fastselfie.tool_arguments import DemoArguments

    out = parse(DemoArguments, words, "fastselfie demo").out
    with importing():
        from fastselfie.demo import demo

    return _trained(lambda: demo(out))


def _trained(work: Callable[[], object]) -> int:
    """Run ``work``; a run that a signal stopped says so and gives the signal's status."""
    from fastselfie.training.signals import Stopped

    try:
        work()
    except Stopped as stopped:
        if speaks():
            say(str(stopped))
        return stopped.status
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    command.__name__: command
    for command in (pretrain, finetune, probe, protocol, report, export, render, prepare, doctor, demo)
}
