"""Parquet files with images in them, as Hugging Face's data sets come: ``data/train-00000-of-00257.parquet`` and on.

Column ``image`` holds encoded images, as bytes or as a struct with a field ``bytes``; column ``label`` integers. Names
of classes stand in the schema's metadata. Parquet is made to be read through: what can be read by itself is a row
group, of a hundred images or of thousands. Shapes: S images, G row groups.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastselfie.errors import UserError
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.numbered_files import has_training_parts, parts
from fastselfie.pipelines.row_groups import IMAGE, RowGroups
from fastselfie.pipelines.source import MOST_CLASSES, EncodedImages, Source

_LABEL = "label"
_SUFFIX = r"(?:-[0-9a-f]+)?\.parquet"  # older data sets have a checksum there
_OPENERS = 8


@dataclass(frozen=True, kw_only=True)
class _File:
    """What is known of a file without its images."""

    path: Path
    group_rows: tuple[int, ...]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]


class TableRows(EncodedImages):
    """One part of a data set in Parquet files.

    To read an image is to read the images of its row group. The last ones stay in memory, 256 MB of them, or two where
    they are larger: reading in order costs each row group once, reading at random one for nearly every image. Measured
    with ImageNet photographs on two cores: 2,300 images/s in order, and when most row groups are not in memory 80 at
    random with 100 images a row group, 20 with 1,000.
    """

    def __init__(self, files: list[_File], labels_S: NDArray[np.int64]) -> None:
        self.labels_S = labels_S
        self._paths = [file.path for file in files]
        self._groups = [(at, group) for at, file in enumerate(files) for group in range(len(file.group_rows))]
        rows_G = np.array([rows for file in files for rows in file.group_rows], dtype=np.int64)
        self._starts_G = np.cumsum(rows_G) - rows_G
        file_rows = np.array([sum(file.group_rows) for file in files], dtype=np.int64)
        self._file_starts = np.cumsum(file_rows) - file_rows
        self._kept = RowGroups()

    def name(self, index: int) -> str:
        """File and row."""
        at = int(np.searchsorted(self._file_starts, index, side="right")) - 1
        return f"{self._paths[at]} row {index - int(self._file_starts[at])}"

    def read(self, index: int) -> bytes:
        """See `EncodedImages.read`."""
        at = int(np.searchsorted(self._starts_G, index, side="right")) - 1
        file, group = self._groups[at]
        value = self._kept.images(self._paths[file], group)[index - int(self._starts_G[at])]
        if not value.is_valid:
            raise BadImage("is not in the table, which names another place for it at most")
        data: bytes = value.as_py()
        return data

    def identity(self) -> Iterable[bytes]:
        """Names of files, sizes of row groups and labels."""
        yield "\0".join(path.name for path in self._paths).encode()
        yield self._starts_G.tobytes()
        yield self.labels_S.tobytes()


def is_parquet(path: Path) -> bool:
    """Whether Parquet files of a training split lie in ``path`` or in ``path/data``."""
    return has_training_parts(_folders(path), _SUFFIX)


def read_parquet(path: Path) -> Source:
    """Open the files in ``path/data`` or ``path``: reads their labels, no images.

    Raises:
        UserError: a file is missing, is no Parquet file or has other columns, or pyarrow is not installed. OSError: the
            storage fails.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError(
            f"{path} holds Parquet files, and what reads them is not installed: pip install 'fastselfie[parquet]'"
        ) from None
    found = parts(_folders(path), _SUFFIX)
    with ThreadPoolExecutor(_OPENERS, thread_name_prefix="open") as pool:
        files = {split: list(pool.map(_open, paths)) for split, paths in found.items()}
    labels, classes = _labels(files)
    splits = {split: TableRows(files[split], labels[split]) for split in files}
    empty = next((split for split, rows in splits.items() if not len(rows)), None)
    if empty is not None:
        raise UserError(f"{found[empty][0]} and its like hold no row: copy them again, or remove them")
    return Source(
        name=path.resolve().name, train=splits["train"], test=splits.get("test"), classes=classes,
        remark=(
            "Parquet is slow in random order, as each image costs its whole row group: pack it once"
            f" (fastselfie prepare {path} DIR) and give --data DIR"
        ),
    )  # fmt: skip


def _folders(path: Path) -> tuple[Path, Path]:
    return path, path / "data"


def _open(path: Path) -> _File:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            labels = file.read([_LABEL]).column(0) if _LABEL in schema.names else None
            group_rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: is no whole Parquet file ({error}): copy it again") from None
    kind = schema.field(IMAGE).type if IMAGE in schema.names else None
    if kind is not None and pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else None
    if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(f"{path}: has no column {IMAGE} with encoded images in it, only {', '.join(schema.names)}")
    if labels is None:
        return _File(path=path, group_rows=group_rows, labels=None, classes=())
    if not pa.types.is_integer(labels.type):
        raise UserError(f"{path}: its column {_LABEL} holds {labels.type}, not integers")
    numbers = labels.fill_null(0).to_numpy().astype(np.int64)
    numbers[labels.is_null().to_numpy()] = -1
    return _File(path=path, group_rows=group_rows, labels=numbers, classes=_class_names(schema.metadata))


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...]:
    """Of the label's ClassLabel in what Hugging Face writes into a schema; none where it does not."""
    try:
        described: Any = json.loads((metadata or {})[b"huggingface"])["info"]["features"][_LABEL]
        names = described["names"]
        ordered = [names[str(number)] for number in range(len(names))] if isinstance(names, dict) else names
        return tuple(str(name) for name in ordered)
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


def _labels(files: dict[str, list[_File]]) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """By split, and the classes; none where a split has no labels or only negative ones, as ImageNet's test split."""
    found: dict[str, NDArray[np.int64]] = {}
    for split, opened in files.items():
        known = [file.labels for file in opened if file.labels is not None]
        labels_S = np.concatenate(known) if len(known) == len(opened) else np.array([-1])
        if (labels_S < 0).all():
            return {name: np.zeros(sum(map(_rows, many)), dtype=np.int64) for name, many in files.items()}, ()
        found[split] = labels_S
    names = next((file.classes for opened in files.values() for file in opened if file.classes), ())
    highest = max(int(labels_S.max()) for labels_S in found.values())
    classes = names or tuple(map(str, range(min(highest + 1, MOST_CLASSES))))
    for split, labels_S in found.items():
        wrong = np.flatnonzero((labels_S < 0) | (labels_S >= len(classes)))
        if len(wrong):
            first = int(wrong[0])
            raise UserError(
                f"{TableRows(files[split], labels_S).name(first)}: has label {labels_S[first]}, and there are"
                f" {len(classes)} classes: give it one from 0 to {len(classes) - 1}"
            )
    return found, classes


def _rows(file: _File) -> int:
    return sum(file.group_rows)
