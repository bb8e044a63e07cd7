"""The samples of a WebDataset tar: members ``key.jpg`` beside ``key.cls`` or ``key.json``, found by its headers.

Of the members' contents only the labels are read. A sample is what lies side by side under one key, which ends at the
first dot of the file's name.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, TypeAlias

from fastselfie.errors import UserError
from fastselfie.pipelines.formats import SUFFIXES, other_suffix
from fastselfie.pipelines.source import MOST_CLASSES
from fastselfie.pipelines.storage import Storage

Label: TypeAlias = int | str | None

_KEY = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)", re.DOTALL)
_LARGEST_LABEL = 1 << 20  # bytes of a .cls or .json member
_LARGEST_IMAGE = (1 << 31) - 1  # bytes, as an index counts them
_LONGEST_END = 1 << 20  # bytes of zeros: tar pads to a record, at most of this size
_IMAGES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Those of one tar that hold a JPEG or PNG image: name, first byte, bytes and label of each.

    Attributes:
        others: how many images of other formats there are, by suffix.
    """

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def read_samples(storage: Storage, shard: str) -> Samples:
    """Walk through a tar.

    Raises:
        UserError: it is cut off or damaged, or a label is none. OSError: the storage fails.
    """
    where, size = f"{storage.place}/{shard}", storage.state(shard)[0]
    found = Samples()
    with storage.open(shard) as file:
        try:
            for sample in _samples(_members(file, size), where):
                _add(found, sample, file, where)
        except (OSError, UserError):
            raise
        except Exception as error:  # of a damaged header tarfile reads numbers and lengths as they come
            reason = error if isinstance(error, tarfile.TarError) else type(error).__name__
            raise UserError(f"{where} is cut off or damaged ({reason}): copy it again") from None
    return found


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """All members, each forgotten after its turn. Raises TarError also where tarfile takes damage for the end."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined] # or a long tar fills the memory
            if not member.offset < tar.offset < size + tarfile.BLOCKSIZE:  # where the next one's header is looked for
                raise tarfile.ReadError(f"a member from byte {member.offset} to {tar.offset} of {size}")
            yield member
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
        if block not in (b"", bytes(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"no header at byte {tar.offset}")
        if size - tar.offset > _LONGEST_END:
            raise tarfile.ReadError(f"an end at byte {tar.offset} of {size}")


def _samples(members: Iterator[tarfile.TarInfo], where: str) -> Iterator[dict[str, tarfile.TarInfo]]:
    """Members of one key that follow each other, by suffix without its dot."""
    key, sample = "", dict[str, tarfile.TarInfo]()
    for member in members:
        parts = _KEY.fullmatch(member.name)
        if parts is None or member.isdir() or parts[1].startswith("__"):
            continue
        if parts[1] != key:
            yield sample
            key, sample = parts[1], {}
        if sample.setdefault(parts[2].lower(), member) is not member:
            raise UserError(f"{where}: {member.name} is there twice: give each sample a name of its own")
    yield sample


def _add(found: Samples, sample: dict[str, tarfile.TarInfo], file: BinaryIO, where: str) -> None:
    found.others.update(suffix for suffix in map(other_suffix, (f"x.{name}" for name in sample)) if suffix)
    images = [sample[suffix] for suffix in _IMAGES if suffix in sample]
    if not images:
        return
    image = images[0]
    if len(images) > 1:
        raise UserError(f"{where}: {image.name} and {images[1].name} are one sample: leave one image in it")
    if not image.isreg() or image.issparse() or image.size > _LARGEST_IMAGE:
        raise UserError(f"{where}: {image.name} is a link, sparse or too large: write the shard with plain files")
    found.names.append(image.name.replace("\0", "\N{REPLACEMENT CHARACTER}"))  # see `Names`
    found.offsets.append(image.offset_data)
    found.sizes.append(image.size)
    found.labels.append(_label(sample, file, where))


def _label(sample: dict[str, tarfile.TarInfo], file: BinaryIO, where: str) -> Label:
    """What ``.cls`` says, or else "label" of ``.json``."""
    label: object = None
    member = sample.get("cls") or sample.get("json")
    if member is None:
        return None
    file.seek(member.offset_data)
    text = file.read(min(member.size, _LARGEST_LABEL))
    try:
        if "cls" in sample:
            label = int(text)
        else:
            told = json.loads(text)
            label = told.get("label") if isinstance(told, dict) else None
    except (ValueError, RecursionError):  # of int, of JSON, and of UTF-8
        label = -1
    if label is None or (isinstance(label, str) and label) or (type(label) is int and 0 <= label < MOST_CLASSES):
        return label
    raise UserError(
        f"{where}: {member.name} holds no label: a .cls is a whole number from 0 to {MOST_CLASSES - 1},"
        ' a .json an object whose "label" is one, or the name of a class'
    )
