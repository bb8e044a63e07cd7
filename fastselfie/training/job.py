"""What the training loop is given to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastselfie.config import RunConfig
from fastselfie.pipelines.pipeline import Pipeline
from fastselfie.pretext.task import Task
from fastselfie.training.placements import Placements
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.world import World


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Named figures of the network that are measured every so many steps and after the last one.

    Attributes:
        measure: as `Job.evaluate`.
    """

    every: int
    measure: Callable[[], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, and how it is judged on the way.

    Attributes:
        config: with device, precision and compile resolved. evaluate: named figures of the network as it stands, in
            evaluation mode with its running statistics in place; called in all processes at once.
        quarantine: where images are noted that cannot be used. also: what else is measured, in steps of its own.
        watch: what looks at single images now and then, likewise but in the main process alone.
    """

    config: RunConfig
    task: Task
    pipeline: Pipeline
    evaluate: Callable[[], dict[str, float]]
    quarantine: Quarantine
    watch: Placements | None = None
    also: tuple[Evaluation, ...] = ()

    def due(self, done: int) -> list[Callable[[], dict[str, float]]]:
        """What is measured after ``done`` steps, in this order."""
        evaluations = (Evaluation(every=self.config.evaluate_every, measure=self.evaluate), *self.also)
        return [e.measure for e in evaluations if done % e.every == 0 or done == self.config.steps]


def micro_batch_size(config: RunConfig, world: World) -> int:
    """Images that one process holds at once."""
    return config.micro_batch_size or config.batch_size // world.size
