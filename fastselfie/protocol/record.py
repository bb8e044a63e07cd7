"""A protocol's ``protocol.json``: what was asked, and which run answers what. With their results it is `Measured`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastselfie.errors import UserError
from fastselfie.files import replace_json
from fastselfie.protocol.measured import Failure, Measured, Missing, Pretraining, Probed, Score, Trial
from fastselfie.protocol.plan import PRETRAINED, Kind
from fastselfie.protocol.task import RunTask, read_object
from fastselfie.training.session import RESULT
from fastselfie.training.starts import read_starts
from fastselfie.training.versions import machine, software

FILE = "protocol.json"


def is_protocol(path: Path) -> bool:
    """Whether ``path`` is a protocol's folder."""
    return (path / FILE).is_file()


def note(
    folder: Path, *, runs: Iterable[tuple[Kind, int, RunTask]], pretrainings: Iterable[tuple[str, Path]],
    probes: Iterable[tuple[str, RunTask]], trials: Iterable[Trial], failures: Iterable[Failure] = (),
    missing: Iterable[Missing] = (),
) -> None:  # fmt: skip
    """Put down which folders answer what, and what is missing for which failures.

    Paths of runs of its own are relative to the protocol's folder.
    """

    def told(path: Path) -> str:
        return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)

    record = read_object(folder / FILE)
    record["runs"] = [
        {
            "variant": kind.variant, "encoder": kind.encoder, "labels": kind.labels, "seed": seed,
            "pretrained": kind.start == PRETRAINED, "run": told(task.folder),
        }
        for kind, seed, task in runs
    ]  # fmt: skip
    record["pretrainings"] = [{"variant": variant, "run": told(path)} for variant, path in pretrainings]
    record["probes"] = [{"variant": variant, "run": told(task.folder)} for variant, task in probes]
    record["trials"] = [dataclasses.asdict(trial) for trial in trials]
    record["failures"] = [dataclasses.asdict(failure) for failure in failures]
    record["missing"] = [dataclasses.asdict(each) for each in missing]
    replace_json(folder / FILE, record)


def noted_failures(folder: Path) -> list[Failure]:
    """The failures that were put down.

    Raises:
        UserError: the record is damaged.
    """
    try:
        return [Failure(**failure) for failure in read_object(folder / FILE).get("failures", ())]
    except TypeError as error:
        raise _damaged(folder, error) from None


def read_protocol(folder: Path) -> Measured:
    """Everything that is done in a protocol's folder.

    Raises:
        UserError: it is none, or a file in it is damaged; names the file.
    """
    if not is_protocol(folder):
        raise UserError(f"{folder}: is no protocol's folder (no {FILE})")
    record = read_object(folder / FILE)
    try:
        return Measured(
            folder=folder, recipe=record["recipe"], data=record["data"], classes=record["classes"],
            asked=record.get("asked", len(record["runs"])),  # of an earlier version: those that were named
            labels=tuple(record["labels"]), encoders=tuple(record["encoders"]),
            seeds=tuple(record["seeds"]), variants=tuple(record["variants"]),
            scores=tuple(_scores(folder, record["runs"])), pretrainings=tuple(_pretrainings(folder, record)),
            settings=tuple(_told(folder, record)), vary_labels=record["settings"]["protocol"]["vary_labels"],
            probes=tuple(_probes(folder, record["probes"])),
            trials=tuple(Trial(**t) for t in record["trials"]),
            missing=tuple(
                Missing(**{**each, "failure": Failure(**each["failure"])}) for each in record.get("missing", ())
            ),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from None


def _damaged(folder: Path, error: Exception) -> UserError:
    what = f"{type(error).__name__}: {error}"
    return UserError(f"{folder / FILE}: is damaged ({what}); run the protocol's command again")


def _told(folder: Path, record: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """What a reader should know of the settings."""
    pretrain, finetune, protocol = (record["settings"][part] for part in ("pretrain", "finetune", "protocol"))
    if protocol["pretrained"] is None:
        yield "its steps", f"of {pretrain['batch_size']:,} images, peak rate {pretrain['lr']:g}"
        yield "width", f"{pretrain['width']:g}"
    rate = "rates tuned on labels held back" if protocol["tune"] else f"peak rate {finetune['lr']:g}"
    yield "finetuning", f"{finetune['steps']:,} steps of {finetune['batch_size']:,} images, {rate}"
    yield "labelled subsets", "another for every seed" if protocol["vary_labels"] else "one for all seeds"
    if record["probes"]:
        yield "probes", f"with {record['labels'][-1]} of the labels"
    runs = [entry["run"] for entry in (*record["pretrainings"], *record["runs"])]
    computed = [start.made_by for run in runs for start in read_starts(folder / run)] or [record["made_by"]]
    yield "made on", " and ".join(dict.fromkeys(map(machine, computed)))
    yield "versions", " and ".join(dict.fromkeys(map(software, computed)))


def _scores(folder: Path, runs: Iterable[Mapping[str, Any]]) -> Iterable[Score]:
    for entry in runs:
        run = folder / entry["run"]
        if (run / RESULT).exists():
            accuracy = float(read_object(run / RESULT)["test_accuracy"])
            yield Score(**{**entry, "run": run}, accuracy=accuracy)


def _pretrainings(folder: Path, record: Mapping[str, Any]) -> Iterable[Pretraining]:
    for entry in record["pretrainings"]:
        run = folder / entry["run"]
        if not (run / RESULT).exists():
            continue
        result, gap = read_object(run / RESULT), None
        if "context_gap_low" in result:
            gap = (float(result["context_gap_low"]), float(result["context_gap_high"]))
        yield Pretraining(
            variant=entry["variant"], steps=int(result["step"]), run=run, gap_interval=gap,
            held_out_accuracy=result.get("held_out_accuracy"), accuracy_shuffled=result.get("accuracy_shuffled"),
            context_gap=result.get("context_gap"),
        )  # fmt: skip


def _probes(folder: Path, probes: Iterable[Mapping[str, Any]]) -> Iterable[Probed]:
    for entry in probes:
        file = folder / entry["run"] / RESULT
        if file.exists():
            result = read_object(file)
            for probed in result["probes"]:
                trained = probed["network"] != "fresh"
                yield Probed(
                    variant=entry["variant"], step=int(result["step"]) if trained else 0, trained=trained,
                    features=probed["features"], linear=probed.get("linear"), knn=probed.get("knn"),
                )  # fmt: skip
