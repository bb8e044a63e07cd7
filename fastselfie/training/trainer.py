"""A run in training: its network, one optimiser step of it, and how all of that is saved and taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.parallel import DistributedDataParallel

from fastselfie.errors import LocalError
from fastselfie.models.weights import load_weights
from fastselfie.pipelines.view import Batch
from fastselfie.randomness import Purpose, scalar_key
from fastselfie.training import checkpoint
from fastselfie.training.checkpoint import Checkpoint
from fastselfie.training.compile_cache import compiling
from fastselfie.training.job import Job, micro_batch_size
from fastselfie.training.metrics import Throughput, Window
from fastselfie.training.optimizer import learning_rate, load_momentum, make_optimizer, momentum_of
from fastselfie.training.reporter import say
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.statistics import RunningStatistics
from fastselfie.training.world import World
from fastselfie.training.wrapping import autocast, wrap

_MOMENTUM = "momentum/"  # before a parameter's name: its momentum buffer in a checkpoint


class Trainer:
    """The state of a run in training, and what can be done with it."""

    def __init__(self, job: Job, world: World, folder: RunFolder) -> None:
        config = job.config
        self.job, self.world, self.folder = job, world, folder
        self.network = job.task.network
        self.micro_batch = micro_batch_size(config, world)
        self.groups = config.batch_size // world.size // self.micro_batch
        self.optimizer = make_optimizer(self.network, config)
        self.statistics = RunningStatistics(self.network, self.groups)
        self.forward = wrap(self.network, config, world)
        self.window = Window(world)
        self.throughput = Throughput(config.batch_size, world.device)

    def settle(self) -> None:
        """Let the network be compiled and DDP find its layout: one pass whose gradients are dropped.

        Compiling takes as long as many steps and is no part of their rate. After its first backward pass DDP arranges
        gradients anew, and from three processes on they are then added up in another order. Without this, the first
        step after a resume would round otherwise than the unbroken run's.
        """
        config = self.job.config
        if self.forward is self.network:
            return
        with compiling() if config.compile == "on" and config.device == "cpu" else nullcontext():
            with autocast(config):
                loss = self.job.task.loss(self.forward, self.job.pipeline.batch(0, self.micro_batch))
            loss.value.backward()

    def step(self, step: int) -> None:
        """One optimiser step on samples [step * batch_size, (step + 1) * batch_size) of the stream.

        Raises:
            LocalError: too many images of a batch cannot be used. If this process is alone, the steps before this one
            are saved; among several, the others are on their way to a meeting that this one will miss.
        """
        config = self.job.config
        try:
            first = self._load(step, 0)
        except LocalError:
            if not self.world.distributed and step:
                self.save(step)
            raise
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config.steps, config.lr)
        self.optimizer.zero_grad()
        for index in range(self.groups):
            self._micro_batch(step, index, self._load(step, index) if index else first)
        self.optimizer.step()
        self.throughput.end_step()

    def _load(self, step: int, index: int) -> Batch:
        with self.throughput.waiting():
            batch = self.job.pipeline.batch(*self._entries(step, index))
        self.job.quarantine.note(batch.refused)
        return batch

    def _micro_batch(self, step: int, index: int, batch: Batch) -> None:
        """Forward and backward of this process's micro-batch ``index``; gradients meet after the last one."""
        config = self.job.config
        group = self.world.rank * self.groups + index
        torch.manual_seed(scalar_key(config.seed, Purpose.DROPOUT, step, group))
        apart = isinstance(self.forward, DistributedDataParallel) and index < self.groups - 1
        with self.forward.no_sync() if apart else nullcontext():  # type: ignore[attr-defined]
            with autocast(config):
                loss = self.job.task.loss(self.forward, batch)
            (loss.value / self.groups).backward()
        self.statistics.collect(index)
        self.window.add(loss)

    def _entries(self, step: int, index: int) -> tuple[int, int]:
        """Entries [start, stop) of the stream that are this process's micro-batch ``index`` of ``step``."""
        group = self.world.rank * self.groups + index
        start = step * self.job.config.batch_size + group * self.micro_batch
        return start, start + self.micro_batch

    def requests(self, start: int) -> Iterator[tuple[int, int]]:
        """What this process will ask its pipeline for from step ``start`` to the last."""
        for step in range(start, self.job.config.steps):
            for index in range(self.groups):
                yield self._entries(step, index)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """The network as it is evaluated: without dropout, and with the running statistics of all groups.

        What is done meanwhile does not count as training's time.
        """
        with self.throughput.paused():
            self.statistics.merge_into_network(self.world)
            self.network.eval()
            try:
                with torch.no_grad(), autocast(self.job.config):
                    yield
            finally:
                self.network.train()

    def save(self, done: int) -> None:
        """Write a checkpoint after ``done`` steps."""
        with self.throughput.paused():
            self.job.quarantine.settle(self.world, self.folder.path, done)
            self.statistics.merge_into_network(self.world)
            training = {_MOMENTUM + name: buffer for name, buffer in momentum_of(self.network, self.optimizer).items()}
            training["running_statistics"] = self.statistics.state(self.world)
            window, weights = self.window.state(), self.network.state_dict()
            state = Checkpoint(step=done, weights=weights, training=training, window=window)
            self.world.in_main(
                lambda: checkpoint.save(self.folder.checkpoints, state, self.job.config.keep_checkpoints)
            )

    def _cut_back(self, done: int) -> None:
        """Forget what was logged after ``done`` steps: those steps will be done again."""
        self.folder.cut_metrics_back(done)
        if self.job.watch is not None:
            self.job.watch.cut_back(self.folder.path, done)

    def restore(self) -> int:
        """Load the newest whole checkpoint; the number of steps that it has done, 0 without one."""
        self.world.in_main(lambda: checkpoint.remove_partial(self.folder.checkpoints))
        done = self.world.in_main(lambda: checkpoint.newest_whole(self.folder.checkpoints, warn=say)) or 0
        self.world.in_main(lambda: self._cut_back(done))
        self.job.quarantine.restore(self.world, self.folder.path, done)
        if not done:
            return 0
        newest = checkpoint.load(self.folder.checkpoints, done)
        load_weights(self.network, newest.weights)
        momentum = {n.removeprefix(_MOMENTUM): t for n, t in newest.training.items() if n.startswith(_MOMENTUM)}
        load_momentum(self.network, self.optimizer, momentum)
        self.statistics.load(newest.training["running_statistics"], self.world)
        self.window.load(newest.window)
        if self.world.is_main and done < self.job.config.steps:
            say(f"{self.folder.path}: going on from step {done} of {self.job.config.steps}")
        return done
