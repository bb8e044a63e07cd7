"""What the training loop is given to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastselfie.config import RunConfig
from fastselfie.pipelines.pipeline import Pipeline
from fastselfie.pretext.task import Task
from fastselfie.training.placements import PlacementRecorder
from fastselfie.training.quarantine import Quarantine
from fastselfie.training.world import World


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Named figures of the network that are measured every so many steps and after the last one.

    Attributes:
        measure: of the network as it stands, in evaluation mode with its running statistics in place; called in all
            processes at once.
    """

    every: int
    measure: Callable[[], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, and how it is judged on the way.

    Attributes:
        config: with device, precision and compile resolved. quarantine: where images are noted that cannot be used.
        evaluations: what is measured, in this order where several are due. watch: what looks at single images now and
            then, in the main process alone.
    """

    config: RunConfig
    task: Task
    pipeline: Pipeline
    quarantine: Quarantine
    evaluations: tuple[Evaluation, ...] = ()
    watch: PlacementRecorder | None = None

    def due(self, done: int) -> list[Callable[[], dict[str, float]]]:
        """What is measured after ``done`` steps."""
        return [each.measure for each in self.evaluations if done % each.every == 0 or done == self.config.steps]


def micro_batch_size(config: RunConfig, world: World) -> int:
    """Images that one process holds at once."""
    return config.micro_batch_size or config.batch_size // world.size
