"""Parquet files as Hugging Face writes them, made by pyarrow alone; what is read is what was put in."""

from __future__ import annotations

import json
import pickle
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastselfie.errors import UserError
from fastselfie.pipelines import row_groups
from fastselfie.pipelines.image_bytes import BadImage
from fastselfie.pipelines.parquet import is_parquet, read_parquet
from fastselfie.pipelines.source import EncodedImages

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
NAMES = ["goldfish", "cock", "jay"]


def images(seed: int, count: int) -> list[bytes]:
    """Random bytes of random lengths: nothing here looks into images."""
    generator = np.random.default_rng(seed)
    return [generator.bytes(int(generator.integers(1, 900))) for _ in range(count)]


def write(
    path: Path, data: list[bytes | None], labels: list[int | None] | None, *, plain: bool = False, rows: int = 4,
    names: Any = NAMES, column: str = "image", kind: Any = None,
) -> None:  # fmt: skip
    """A file with ``rows`` rows a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures: Any = pa.array(data, pa.binary())
    if not plain:
        pictures = pa.array([{"bytes": one, "path": f"{at}.JPEG"} for at, one in enumerate(data)], struct)
    columns = {column: pictures, "score": pa.array([0.5] * len(data))}
    if labels is not None:
        columns["label"] = pa.array(labels, kind or pa.int64())
    table = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows, write_page_checksum=True)


TRAIN, TEST = images(0, 23), images(1, 5)
LABELS = [at % 3 for at in range(23)]


def write_both(folder: Path, **options: Any) -> Path:
    """Two files to train on, 10 and 13 rows, and one to test on; ``test-*`` is not looked at beside a validation."""
    write(folder / "train-00000-of-00002.parquet", [*TRAIN[:10]], [*LABELS[:10]], **options)
    write(folder / "train-00001-of-00002.parquet", [*TRAIN[10:]], [*LABELS[10:]], **options)
    write(folder / "validation-00000-of-00001.parquet", [*TEST], [2, 0, 1, 1, 2], **options)
    write(folder / "test-00000-of-00001.parquet", [b"x"], [-1], **options)
    (folder / "README.md").write_text("a data set")
    return folder


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    write_both(tmp_path / "imagenet" / "data")
    return tmp_path / "imagenet"


@pytest.fixture
def groups_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The row groups that were decoded, in that order."""
    counted, read_group = list[tuple[str, int]](), row_groups._read_group

    def counting(path: Path, group: int) -> Any:
        counted.append((path.name, group))
        return read_group(path, group)

    monkeypatch.setattr(row_groups, "_read_group", counting)
    return counted


def encoded(split: object) -> EncodedImages:
    assert isinstance(split, EncodedImages)
    return split


def all_of(split: object) -> list[bytes]:
    return [encoded(split).read(index) for index in range(len(encoded(split)))]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("place", ["imagenet/data", "imagenet"])
def test_images_and_labels_by_index(plain: bool, place: str, tmp_path: Path) -> None:
    write_both(tmp_path / place, plain=plain)
    path = tmp_path / "imagenet"
    assert is_parquet(path)
    source = read_parquet(path)
    assert (source.name, source.classes) == ("imagenet", tuple(NAMES))
    assert all_of(source.train) == TRAIN
    assert all_of(source.test) == TEST
    assert encoded(source.train).labels_S.tolist() == LABELS
    assert encoded(source.test).labels_S.tolist() == [2, 0, 1, 1, 2]
    assert encoded(source.train).labels_S.dtype == np.int64
    assert encoded(source.train).name(12) == f"{tmp_path / place / 'train-00001-of-00002.parquet'} row 2"
    assert "fastselfie prepare" in source.remark


def test_any_order_and_threads(imagenet: Path) -> None:
    train = encoded(read_parquet(imagenet).train)
    order = np.random.default_rng(2).permutation(23).tolist() * 3
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(train.read, order)) == [TRAIN[index] for index in order]
    assert all_of(pickle.loads(pickle.dumps(train))) == TRAIN


def test_reading_in_order_decodes_a_row_group_once(imagenet: Path, groups_read: list[tuple[str, int]]) -> None:
    train = encoded(read_parquet(imagenet).train)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(train.read, range(23))) == TRAIN
    first, second = "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"
    assert sorted(groups_read) == [*((first, group) for group in range(3)), *((second, group) for group in range(4))]


def test_memory_is_bounded(imagenet: Path, groups_read: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "_KEPT_BYTES", 1)  # less than any row group
    train = encoded(read_parquet(imagenet).train)
    for index in (0, 4, 0, 4, 8, 4, 0):  # the two last are kept: rows 4 to 7 and 8 to 9, when the first is wanted again
        train.read(index)
    assert [group for _, group in groups_read] == [0, 1, 2, 0]


def test_classes_by_number(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [b"a", b"b"], [0, 4], names=None)
    source = read_parquet(tmp_path)
    assert (source.classes, source.test) == (("0", "1", "2", "3", "4"), None)
    write(tmp_path / "train.parquet", [b"a", b"b"], [0, 1], names={"1": "one", "0": "zero"})  # an older way to write
    assert read_parquet(tmp_path).classes == ("zero", "one")
    schema = pq.read_schema(tmp_path / "train.parquet").with_metadata({"huggingface": "[" * 100_000})
    pq.write_table(pq.read_table(tmp_path / "train.parquet").cast(schema), tmp_path / "train.parquet")
    assert read_parquet(tmp_path).classes == ("0", "1")


@pytest.mark.parametrize("labels", [None, [-1, -1], [None, None]])
def test_images_without_labels(labels: list[int | None] | None, tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00001.parquet", [b"a", b"b"], labels)
    source = read_parquet(tmp_path)
    assert (source.classes, encoded(source.train).labels_S.tolist(), all_of(source.train)) == ((), [0, 0], [b"a", b"b"])


def test_an_older_name(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00001-1f2e3d4c5b6a7980.parquet", [b"a"], [0])
    assert is_parquet(tmp_path)
    assert all_of(read_parquet(tmp_path).train) == [b"a"]


def test_the_fingerprint_tells_data_apart(imagenet: Path, tmp_path: Path) -> None:
    again = write_both(tmp_path / "elsewhere" / "imagenet" / "data").parent
    assert read_parquet(again).fingerprint() == read_parquet(imagenet).fingerprint()
    write(again / "data" / "validation-00000-of-00001.parquet", [*TEST], [2, 0, 1, 1, 1])
    assert read_parquet(again).fingerprint() != read_parquet(imagenet).fingerprint()


def test_an_image_that_is_not_in_the_table(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [b"a", None, b"", b"d"], [0, 1, 2, 0])
    train = encoded(read_parquet(tmp_path).train)
    assert [train.read(index) for index in (0, 2, 3)] == [b"a", b"", b"d"]
    with pytest.raises(BadImage, match="is not in the table"):
        train.read(1)


def test_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write(path, [*TRAIN], [*LABELS])
    data = bytearray(path.read_bytes())
    data[bytes(data).index(TRAIN[9][:50])] ^= 1  # random bytes are stored as they are
    path.write_bytes(data)
    train = encoded(read_parquet(tmp_path).train)
    for index in (8, 9, 8):  # the whole of it, every time
        with pytest.raises(BadImage, match="lies in row group 2, which cannot be decoded"):
            train.read(index)
    assert [train.read(index) for index in (0, 7, 12, 22)] == [TRAIN[index] for index in (0, 7, 12, 22)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"column": "picture"}, "has no column image with encoded images in it, only picture, score, label"),
        ({"labels": [0, 3]}, "train.parquet row 1: has label 3, and there are 3 classes"),
        ({"labels": [-1, 0]}, "train.parquet row 0: has label -1"),
        ({"labels": [0, None]}, "train.parquet row 1: has label -1"),
        ({"labels": [0, None], "kind": pa.uint8()}, "train.parquet row 1: has label -1"),
        ({"labels": [0, 2**40], "names": None}, "train.parquet row 1: has label 1099511627776"),
    ],
)
def test_tables_that_will_not_do(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [b"a", b"b"], **{"labels": [0, 1], **change})
    with pytest.raises(UserError, match=re.escape(said)):
        read_parquet(tmp_path)


def test_images_that_are_arrays(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([[1, 2], [3]]), "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="has no column image with encoded images"):
        read_parquet(tmp_path)


@pytest.mark.parametrize("cut", [0, 3, 200])
def test_a_file_that_is_not_whole(cut: int, imagenet: Path) -> None:
    path = imagenet / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet: is no whole Parquet file"):
        read_parquet(imagenet)


def test_a_missing_file_is_named(imagenet: Path) -> None:
    (imagenet / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="train-00000-of-00002 is missing"):
        read_parquet(imagenet)


@pytest.mark.parametrize("other", ["train-00001-of-00003.parquet", "train-00001-of-00002-0a1b.parquet"])
def test_two_sets_of_files_are_not_mixed(other: str, imagenet: Path) -> None:
    """Neither is the one of them taken that the folder happens to list last."""
    write(imagenet / "data" / other, [*TRAIN], [*LABELS])
    with pytest.raises(UserError, match=r"train-0000.-of-0000..* and train-0000.-of-0000..* are of two sets of files"):
        read_parquet(imagenet)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_files_without_a_row(split: str, imagenet: Path) -> None:
    for path in (imagenet / "data").glob(f"{split}-*"):
        write(path, [], [])
    with pytest.raises(UserError, match=rf"data/{split}-00000-of-0000.\.parquet and its like hold no row"):
        read_parquet(imagenet)


@pytest.mark.parametrize("name", ["training_notes.parquet", "train.parquet.md", "validation.parquet"])
def test_what_is_no_such_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    assert not is_parquet(tmp_path)
    assert not is_parquet(tmp_path / name)


def test_without_the_library(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'fastselfie\[parquet\]'"):
        read_parquet(imagenet)
