"""Which frozen features of a pretraining run are judged: at evenly spaced moments, the end among them."""

from __future__ import annotations

from pathlib import Path

from fastselfie.config import require
from fastselfie.errors import UserError
from fastselfie.protocol.settings import Asked
from fastselfie.protocol.task import RunTask
from fastselfie.training.checkpoint import saved_steps
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.session import RESULT


def moments(asked: Asked) -> list[int]:
    """Steps after which pretraining is probed, ascending.

    Raises:
        UserError: its steps do not divide into as many as are asked for.
    """
    steps, probes = asked.pretrain.steps, asked.protocol.probes
    if probes and steps % probes:
        raise UserError(f"--probes {probes}: must divide --pretrain.steps {steps}, to be evenly spaced")
    return [steps * (index + 1) // probes for index in range(probes)]


def told(asked: Asked) -> str | None:
    """For the user: what several moments mean for the checkpoints of pretraining; None of one at the most."""
    steps = moments(asked)
    if len(steps) < 2:
        return None
    return f"--probes {len(steps)}: pretraining is saved every {steps[0]} steps, to be probed there, and keeps all"


def probe_tasks(asked: Asked, folder: Path, pretraining: RunTask | None) -> list[RunTask]:
    """Classifiers on the frozen features of a pretraining run, with the largest share of labels.

    Args:
        folder: the protocol's. pretraining: None where ``--from`` names the run.

    Raises:
        UserError: the run is there and has kept no checkpoint of a moment that is asked for.
    """
    run = asked.protocol.pretrained if pretraining is None else pretraining.folder
    assert run is not None
    labels, words = asked.protocol.label_shares[-1], _words(asked, run)
    found = []
    for step in moments(asked):
        end = step == asked.pretrain.steps
        # Asked for a larger share later, all variants are probed with that: others would not compare.
        name = f"probe/{run.name}/{labels.rstrip('%')}-{'end' if end else f'step-{step}'}"
        at = () if end else ("--checkpoint", str(step), "--no-fresh")
        out = folder / name
        found.append(RunTask(name=name, folder=out, words=(*words, "--out", str(out), *at), steps=1, needs=pretraining))
        if not end and not found[-1].done:
            _must_keep(step, run, asked.protocol.probes)
    return found


def _words(asked: Asked, run: Path) -> list[str]:
    """What every probe of ``run`` is started with."""
    protocol = asked.protocol
    words = ["probe", protocol.recipe, "--from", str(run), "--labels", protocol.label_shares[-1]]
    words += ["--label-seed", str(asked.finetune.label_seed)]
    words += ["--data", protocol.data] if protocol.data else []
    shared = {name: getattr(asked.finetune, name) for name in ("device", "precision")}
    return words + [word for name, value in shared.items() if value != "auto" for word in (f"--{name}", value)]


def _must_keep(step: int, run: Path, probes: int) -> None:
    """Refuse to probe a moment that the pretraining ``run`` is past without a checkpoint of it."""
    saved = saved_steps(RunFolder(run).checkpoints)
    past = (run / RESULT).exists() or any(later > step for later in saved)
    require(
        step in saved or not past,
        f"--probes {probes}: {run} is past step {step} and has kept no checkpoint of it; take --probes 1, or another"
        " --out",
    )
