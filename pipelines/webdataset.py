"""WebDataset shards of other people: a folder of tar files, here or behind a URL, whose names say which split they are.

They are indexed once by walking through their headers; from then on images are read in any order.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastselfie.errors import UserError
from fastselfie.pipelines.formats import is_image, passed_over
from fastselfie.pipelines.index_file import Index, index_path, one_maker, read_index, write_index
from fastselfie.pipelines.names import Names
from fastselfie.pipelines.packed_format import ENTRY
from fastselfie.pipelines.shards import Shards
from fastselfie.pipelines.source import Source
from fastselfie.pipelines.storage import FileState, LocalFolder, Storage
from fastselfie.pipelines.tar_samples import Label, Samples, read_samples

_FORMAT = 1  # of the index: another one is made anew
_WALKERS = 8  # shards walked at once: storage waits, the walk itself is one thread's work
_TRAIN, _TESTS = "train", ("val", "test")
# A word of a shard's name, as in imagenet1k-validation-00.tar.
_SPLIT = re.compile(r"(?<![a-z])(train|val|test)(?:ing|idation|id)?(?![a-z])")


def is_webdataset(storage: Storage) -> bool:
    """Whether tar files lie there. Beside a folder ``train`` of this machine they are what that was unpacked from."""
    if isinstance(storage, LocalFolder) and storage.path(_TRAIN).is_dir():
        return False
    return any(_is_tar(name) for name in storage.names())


def read_webdataset(storage: Storage, index: Path | None) -> Source:
    """Open the shards, after walking through them where no index fits.

    ``val`` is taken where there are both ``val`` and ``test``. Where one of two parts has no labels, none has.

    Args:
        index: the folder where the index is kept; None to make it each time and hold it in memory.

    Raises:
        UserError: splits cannot be told apart, a shard is damaged or without images, a label is none, or an image to
            test on is of a class that is not trained on. OSError: the storage fails.
    """
    names = storage.names()
    stray = next(filter(is_image, names), None)
    if stray is not None:
        raise UserError(f"{storage.place} holds tar files and images such as {stray}: put one kind elsewhere")
    shards = _splits(storage, [name for name in names if _is_tar(name)])
    states = {part: _states(storage, own) for part, own in shards.items()}
    storage.check(shards[_TRAIN][0])
    header = {"format": _FORMAT, "place": storage.key, "shards": json.loads(json.dumps(states))}
    if index is None:
        return _source(storage, states, _walked(storage, states, header))
    path = index_path(index, "webdataset", storage.key)
    with one_maker(path):
        outdated = path.exists()
        found = _fitting(path, header)
        if found is None:
            found = _walked(storage, states, header)
            write_index(path, found, replace=outdated)
            found = _fitting(path, header) or found  # mapped, which processes share
    return _source(storage, states, found)


def _fitting(path: Path, header: dict[str, Any]) -> Index | None:
    """The index that is kept, if it is of these shards in these states."""
    found = read_index(path)
    if found is None or any(found.header.get(name) != value for name, value in header.items()):
        return None
    return found


def _is_tar(name: str) -> bool:
    return name.endswith(".tar") and not name.startswith(".")


def _splits(storage: Storage, tars: Sequence[str]) -> dict[str, list[str]]:
    """Shards to train on, and to test on if there are any."""
    said: dict[str, list[str]] = {}
    for name in tars:
        words = set(_SPLIT.findall(name.lower()))
        if len(words) > 1:
            raise UserError(f"{storage.place}/{name} is named after two splits: name it after one")
        said.setdefault(words.pop() if words else "", []).append(name)
    if set(said) == {""}:
        return {_TRAIN: said[""]}
    if "" in said or _TRAIN not in said:
        wrong = said.get("") or tars
        raise UserError(
            f"{storage.place}/{wrong[0]}: is it trained on? Put train, val or test into the names of all shards, or of"
            " none"
        )
    test = next((name for name in _TESTS if name in said), None)
    return {_TRAIN: said[_TRAIN]} | ({} if test is None else {test: said[test]})


def _states(storage: Storage, shards: Sequence[str]) -> dict[str, FileState]:
    with ThreadPoolExecutor(storage.readers or 1) as pool:
        return dict(zip(shards, pool.map(storage.state, shards), strict=True))


def _walked(storage: Storage, states: dict[str, dict[str, FileState]], header: dict[str, Any]) -> Index:
    """The index of shards in those states, with whose ``header`` its own begins."""
    parts: dict[str, list[Samples]] = {}
    for part, own in states.items():
        with ThreadPoolExecutor(_WALKERS) as pool:
            parts[part] = list(pool.map(lambda shard: read_samples(storage, shard), own))
        _check(storage, dict(zip(own, parts[part], strict=True)))
    classes = _classes(storage, parts)
    numbers = {label: number for number, label in enumerate(classes)}
    arrays, others = dict[str, NDArray[Any]](), Counter[str]()
    for part, walked in parts.items():
        entries_S = np.zeros(sum(len(samples.names) for samples in walked), dtype=ENTRY)
        entries_S["shard"] = np.repeat(np.arange(len(walked)), [len(samples.names) for samples in walked])
        entries_S["offset"] = [offset for samples in walked for offset in samples.offsets]
        entries_S["size"] = [size for samples in walked for size in samples.sizes]
        if classes:
            entries_S["label"] = [numbers[label] for samples in walked for label in samples.labels]
        names = Names.of(name for samples in walked for name in samples.names)
        arrays |= {f"{part} entries": entries_S, f"{part} names": names.joined, f"{part} ends": names.ends_S}
        for samples in walked:
            others.update(samples.others)
    return Index(header={**header, "classes": [str(label) for label in classes], "others": others}, arrays=arrays)


def _check(storage: Storage, walked: dict[str, Samples]) -> None:
    """Each shard has images, and all have labels or none has."""
    labelled = next((samples.labels[0] is not None for samples in walked.values() if samples.labels), False)
    for shard, samples in walked.items():
        where = f"{storage.place}/{shard}"
        if not samples.names:
            others = passed_over(samples.others)
            raise UserError(f"{where} holds no JPEG or PNG image{f' ({others})' if others else ''}: remove it")
        for name, label in zip(samples.names, samples.labels, strict=True):
            if (label is not None) != labelled:
                has = "has no label, and others have one" if labelled else "has a label, and others have none"
                raise UserError(f"{where}: {name} {has}: give all a label or none")


def _classes(storage: Storage, parts: dict[str, list[Samples]]) -> list[Label]:
    """All labels in the order of the classes; none where a part has none."""
    train, *tests = ({label for samples in walked for label in samples.labels} for walked in parts.values())
    if None in train or any(None in test for test in tests):
        return []
    known: list[Label]
    if all(isinstance(label, int) for label in train):
        known = list(range(1 + max(label for label in train if isinstance(label, int))))
    elif all(isinstance(label, str) for label in train):
        known = sorted(train, key=str)
    else:
        raise UserError(f"{storage.place}: some labels are numbers and some are names: take either")
    strange = sorted(set().union(*tests) - set(known), key=str)
    if strange:
        raise UserError(f"{storage.place}: {strange[0]} is a class of {_TESTS[0]} that {_TRAIN} has not: remove it")
    return known


def _source(storage: Storage, states: dict[str, dict[str, FileState]], index: Index) -> Source:
    opened = []
    for part, own in states.items():
        entries_S = index.arrays[f"{part} entries"]
        opened.append(
            Shards(
                storage, shards=list(own), entries_S=entries_S, labelled=bool(index.header["classes"]),
                members=Names(index.arrays[f"{part} names"], index.arrays[f"{part} ends"]),
                described=json.dumps([(name, size) for name, (size, _) in own.items()]).encode(),
            )
        )  # fmt: skip
    return Source(
        name=storage.name, train=opened[0], test=opened[1] if len(opened) > 1 else None,
        classes=tuple(index.header["classes"]), remark=passed_over(index.header["others"]),
    )  # fmt: skip
