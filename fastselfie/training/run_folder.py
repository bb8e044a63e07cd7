"""A run's folder: what was asked, what came of it, and whether the same command may go on with it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastselfie.config import RunConfig, contrast, flag, idle, require
from fastselfie.errors import UserError
from fastselfie.files import LOCK, held, occupied, replace_json
from fastselfie.pipelines.source import Probes
from fastselfie.randomness import STREAM
from fastselfie.training import config_file
from fastselfie.training.config_file import as_json, read_config, with_defaults
from fastselfie.training.step_lines import cut_back, lines_of, step_of
from fastselfie.training.versions import versions
from fastselfie.training.world import World

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# What a run may change when it goes on, beside settings without effect: where things lie, how often it saves, and how
# a step is computed. The last changes rounding, and micro-batches change batch norm's groups. The images and the
# pretrained weights are compared by their checksums, which are among the facts.
FREE = frozenset(
    {
        *("out", "data", "device", "compile", "kernels", "trunk", "norm", "sgd", "micro_batch_size"),
        *("deterministic", "loader_threads", "prefetch", "region_decoding", "max_bad_share", "index", "pretrained"),
        *("checkpoint_every", "keep_checkpoints"),
    }
)


class RunFolder:
    """The files of one run. Made by the main process, and only once everything that can be refused was checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self._config = path / config_file.FILE

    def claim(self, config: DataclassInstance, command: str, facts: dict[str, Any]) -> None:
        """Make the folder, or check that it holds a run of the same settings.

        Args:
            config: settings by their names on the command line. facts: what the settings resolve to that must be the
                same again, such as the images' fingerprint.

        Raises:
            UserError: the folder holds something else; names the first setting that differs.
        """
        settings = as_json(dataclasses.asdict(config))
        try:
            if not self._config.exists():
                made = facts | {"stream": STREAM}
                self._make({"command": command, "settings": settings, "facts": made, "made_by": versions()})
        except OSError as error:
            raise _unwritable(self.path, error) from None
        record = read_config(self.path)
        theirs = {**with_defaults(type(config), record["settings"]), **record["facts"]}
        free = FREE | (idle(config).keys() if isinstance(config, RunConfig) else set())
        compared = {name: value for name, value in settings.items() if name not in free}
        self._compare(record["command"], theirs, command, compared, facts)

    def _make(self, record: dict[str, Any]) -> None:
        """Write config.json, which is a run's first file, unless another process was quicker."""
        there = self.path.exists()
        if occupied(self.path) and not self._config.exists():
            raise UserError(f"--out {self.path}: is not an empty folder and holds no run; choose another")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._alone():
                if not self._config.exists():
                    replace_json(self._config, record)
        except OSError:
            if not there and not self._config.exists():
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with held(self.path / LOCK) as free:
            require(free, f"--out {self.path}: another process is training in it")
            yield

    def _compare(
        self, their_command: str, theirs: dict[str, Any], command: str, settings: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        if their_command != command:
            raise UserError(f"--out {self.path}: holds a {their_command} run; choose another folder")
        settings = {"recipe": settings["recipe"], **settings}  # named first where it differs, not what follows from it
        for name, value in {**settings, **facts}.items():
            if differs(theirs.get(name), value):
                if name in facts:
                    raise UserError(
                        f"--out {self.path}: was made with other {name} ({theirs.get(name)}, now {value}): a file more,"
                        " less, renamed or changed will do; bring those back to go on, or choose another folder"
                    )
                said = name if name == "recipe" else flag(name)
                raise UserError(
                    f"--out {self.path}: holds a run with {contrast(said, theirs.get(name), value)};"
                    " repeat its settings to go on with it or choose another folder"
                )

    def check_stream(self) -> None:
        """Refuse to go on with a run that was begun with another stream of images.

        Raises:
            UserError: it was.
        """
        began = read_config(self.path)["facts"].get("stream", 1)
        require(
            began == STREAM,
            f"--out {self.path}: was begun by a FastSelfie with another order of images (stream {began}, now {STREAM});"
            " finish it with that one, which its config.json names, or choose another folder",
        )

    @contextmanager
    def locked(self, world: World) -> Iterator[None]:
        """Keep a second run of the same folder out while this one trains.

        Raises:
            UserError: another run trains in this folder.
        """
        with ExitStack() as stack:
            try:
                world.in_main(lambda: stack.enter_context(self._alone()))
            except OSError as error:
                raise _unwritable(self.path, error) from None
            yield

    def cut_metrics_back(self, step: int) -> None:
        """Drop the lines after ``step``, and a torn last one: they will be written again."""
        cut_back(self.metrics, step)

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def has_line(self, step: int) -> bool:
        """Whether metrics.jsonl tells of ``step``."""
        return any(step_of(line) == step for line in lines_of(self.metrics))

    def last_metrics(self) -> dict[str, Any]:
        """The newest value of every metric."""
        merged: dict[str, Any] = {}
        for line in lines_of(self.metrics):
            merged |= json.loads(line)
        return merged


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"--out {path}: cannot be written ({error.strerror}); choose another folder")


def differs(theirs: Any, ours: Any) -> bool:
    """Whether a setting or a fact differs. Of `Source.probes` up to half may: images get damaged, and runs go on."""
    if isinstance(ours, Probes) and isinstance(theirs, list) and len(theirs) == len(ours):
        return 2 * sum(old != new for old, new in zip(theirs, ours, strict=True)) > len(ours)
    return bool(theirs != ours)
