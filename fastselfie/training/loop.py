"""The training loop: one for every task, data source and number of devices."""

from __future__ import annotations

from fastselfie.training.garbage import frozen_garbage
from fastselfie.training.job import Job
from fastselfie.training.observer import Observer
from fastselfie.training.reporter import reporter, say
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.signals import Stopped, stop_signal
from fastselfie.training.starts import note_start
from fastselfie.training.trainer import Trainer
from fastselfie.training.world import World


def train(job: Job, world: World, folder: RunFolder, opening: str) -> None:
    """Train from the newest checkpoint, or from the start, to the last step.

    Args:
        opening: said to the user once nothing stands in the way any more.

    Raises:
        Stopped: a signal came; the state is saved. UserError: the loss is not finite, or a checkpoint cannot be
            written or read.
    """
    trainer = Trainer(job, world, folder)
    start, steps = trainer.restore(), job.config.steps
    if start < steps:
        world.in_main(lambda: note_start(folder.path, start, job.config))
    if world.is_main:
        say(opening)
    # Caught until all is closed: torchrun tells this process to end when another that was stopped has ended.
    with stop_signal(world) as stop, reporter(folder, world, start, steps) as report, frozen_garbage():
        observer = Observer(trainer, report)
        trainer.settle()
        observer.begin(start)
        job.pipeline.announce(trainer.requests(start))
        trainer.throughput.restart()
        for step in range(start, steps):
            trainer.step(step)
            done = step + 1
            observer.after_step(done)
            signal = stop.agreed()
            if done % job.config.checkpoint_every == 0 or done == steps or signal:
                trainer.save(done)
            if signal and done < steps:
                raise Stopped(f"stopped and saved at step {done} of {steps}; the same command goes on", 128 + signal)
    trainer.statistics.merge_into_network(world)
