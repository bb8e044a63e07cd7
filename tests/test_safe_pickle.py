"""Pickles of arrays are read as pickle itself reads them, and nothing else that a pickle names ever runs."""

from __future__ import annotations

import errno
import io
import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastselfie.errors import UserError
from fastselfie.pipelines.safe_pickle import load_arrays

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load(raw: bytes) -> dict[str, object]:
    return load_arrays(io.BytesIO(raw), "some/file")


def python2_pickle(rows: NDArray[np.uint8], labels: list[int]) -> bytes:
    """What Python 2's cPickle wrote for the official archive (protocol 2), put together by hand."""
    raw = rows.tobytes()
    state = b"K\x01K" + bytes([len(rows)]) + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    state += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(raw)) + raw
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nK\x00\x85U\x01b\x87R(" + state + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}q\x01(U\x04data" + array + b"U\x06labels" + listed + b"u."


def python2_pickle_text(rows: NDArray[np.uint8], labels: list[int]) -> bytes:
    """The same in Python 2's protocol 0, where bytes are written as a quoted string."""
    quoted = repr(rows.tobytes())[1:].encode("ascii")
    array = b"cnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n(I0\ntp5\nS'b'\np6\ntp7\nRp8\n"
    state = b"(I1\n(I%d\nI3072\ntp9\ncnumpy\ndtype\np10\n(S'u1'\np11\nI0\nI1\ntp12\nRp13\n" % len(rows)
    state += b"(I3\nS'|'\np14\nNNNI-1\nI-1\nI0\ntp15\nbI00\nS" + quoted + b"\np16\ntp17\nb"
    listed = b"(lp19\n" + b"".join(b"I%d\na" % label for label in labels)
    return b"(dp1\nS'data'\np2\n" + array + state + b"sS'labels'\np18\n" + listed + b"s."


ROWS = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reads_what_pickle_reads(protocol: int) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "bytes": ROWS,
        "mean": np.linspace(-1, 1, 7),
        "swapped": np.arange(5, dtype=">i4"),
        "fortran": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
        "flags": np.array([True, False]),
        "empty": np.empty((0, 3), dtype=np.int16),
    }
    plain = {"labels": [1, -2, 2**40, 10**30], "nested": ({"a": [None, True]}, 1.5, "é"), "raw": b"\x00\xff"}
    loaded = load(pickle.dumps({**arrays, **plain, "scalar": np.int64(-3)}, protocol))
    for key, array in arrays.items():
        found = loaded[key]
        assert isinstance(found, np.ndarray)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    assert {key: loaded[key] for key in plain} == plain
    assert loaded["scalar"] == -3


@pytest.mark.parametrize("write", [python2_pickle, python2_pickle_text])
def test_reads_python_2(write: Callable[[NDArray[np.uint8], list[int]], bytes]) -> None:
    raw = write(ROWS, [3, 7])
    np.testing.assert_array_equal(pickle.loads(raw, encoding="bytes")[b"data"], ROWS)  # the hand-made pickle is right
    loaded = load(raw)
    np.testing.assert_array_equal(loaded["data"], ROWS)
    assert loaded["labels"] == [3, 7]


class Shell:
    """Unpickled freely, this creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, (f"touch {self.marker}",)


class Evaluate(Shell):
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return eval, (f"open({str(self.marker)!r}, 'w')",)


class NumpyFunction(Shell):
    """A function of NumPy's own that writes a file."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return np.save, (f"{self.marker}.npy", [1])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("kind", "named"), [(Shell, "system"), (Evaluate, "eval"), (NumpyFunction, "numpy"), (Path, "pathlib")]
)
def test_nothing_named_in_a_pickle_runs(protocol: int, kind: type, named: str, tmp_path: Path) -> None:
    hostile = kind(tmp_path / "marker")
    objects = np.array([1, hostile], dtype=object)
    for contents in (hostile, {"data": hostile}, {"data": [[1, (hostile,)]]}, {hostile: 1}, {"data": objects}):
        try:
            raw = pickle.dumps(contents, protocol)
        except TypeError:  # something that cannot be a key
            continue
        with pytest.raises(UserError, match=r"^some/file holds ") as caught:
            load(raw)
        assert named in str(caught.value) or (contents.__class__ is dict and "dtype 'O8'" in str(caught.value))
    assert not list(tmp_path.iterdir())


HOSTILE = {
    "NumPy's types called": b"\x80\x02}U\x01acnumpy\nndarray\nK\x05\x85Rs.",
    "a subclass": b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85U\x01b\x87Rs.",
    "a codec that imports": b"\x80\x02}U\x01ac_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86Rs.",
    "a stand-in changed": b"\x80\x02}U\x01ac_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__)s\x86bs.",
    "an attribute of a stand-in": b"\x80\x04}\x8c\x01a\x8c\x07_codecs\x8c\x0fencode.__code__\x93s.",
    "a structured dtype": b"\x80\x02}U\x01acnumpy\ndtype\nU\x03V16K\x00K\x01\x87Rs.",
    "an unknown byte order": b"\x80\x02}U\x01acnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01Otbs.",
    "an array never filled": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R.",
    "a persistent id": b"\x80\x02}U\x01aK\x01Qs.",
    "the extension registry": b"\x80\x02}U\x01a\x82\x01s.",
    "an old-style instance": b"(S'true'\nios\nsystem\n.",
    "a new-style instance": b"\x80\x02cnumpy\ndtype\nU\x02u1\x85\x81.",
    "a list": b"\x80\x02].",
    "a number as key": b"\x80\x02}K\x01K\x01s.",
    "a list as key": b"\x80\x02}]K\x01s.",
    "itself": b"\x80\x02}q\x00U\x01ah\x00s" + b"0" * 3 + b".",
    "nothing": b"",
    "text": b"<!DOCTYPE html><html>404 Not Found</html>",
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_odd_pickles_are_refused(raw: bytes) -> None:
    with pytest.raises(UserError, match=r"^some/file ") as caught:
        load(raw)
    assert "\n" not in str(caught.value)
    assert load(pickle.dumps({"b": b"\xe9"}, 2)) == {"b": b"\xe9"}  # the stand-ins are as they were


DEEP = b")" + b"\x85" * 300_000
CRASHING = {
    "a key": b"\x80\x02}" + DEEP + b"K\x01s.",
    "a key among others": b"\x80\x02}(" + DEEP + b"K\x01u.",
    "a key at once": b"\x80\x02(" + DEEP + b"K\x01d.",
    "a dtype": b"\x80\x02}U\x01acnumpy\ndtype\n" + DEEP + b"\x85Rs.",
}


@pytest.mark.parametrize("raw", CRASHING.values(), ids=CRASHING.keys())
def test_many_tuples_in_each_other_are_refused(raw: bytes) -> None:
    """CPython's hash of a tuple goes as deep as the tuple is, and there it ends the process."""
    child = os.fork()
    if child == 0:
        try:
            load(raw)
        except UserError:
            os._exit(2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


def test_array_of_another_shape_than_its_bytes() -> None:
    raw = pickle.dumps({"data": ROWS}, 4)
    assert raw.count(struct.pack("<H", 3072)) == 1
    for other in (3071, 3073):
        with pytest.raises(UserError, match="damaged"):
            load(raw.replace(struct.pack("<H", 3072), struct.pack("<H", other)))


U1, ORDER = b"cnumpy\ndtype\nU\x02u1\x85R", b"X\x01\x00\x00\x00C"
NO_STATE = {
    "a text for bytes": b"X\x01\x00\x00\x00a" + U1 + b"K\x01\x85" + ORDER,
    "a text for a dtype": b"U\x01aU\x02u1K\x01\x85" + ORDER,
    "another order": b"U\x01a" + U1 + b"K\x01\x85X\x01\x00\x00\x00A",
    "lengths below 0": b"U\x01a" + U1 + b"J\xff\xff\xff\xff" * 2 + b"\x86" + ORDER,
    "a flag for a length": b"U\x01a" + U1 + b"\x88\x85" + ORDER,
}


def test_bytes_that_are_an_array() -> None:
    """The form of which the next test's are spoilt."""
    found = load(b"\x80\x02}U\x01acnumpy.core.numeric\n_frombuffer\n(U\x01a" + U1 + b"K\x01\x85" + ORDER + b"tRs.")
    np.testing.assert_array_equal(np.asarray(found["a"]), np.array([ord("a")], np.uint8))


@pytest.mark.parametrize("state", NO_STATE.values(), ids=NO_STATE.keys())
def test_what_is_no_state_of_an_array_does_not_reach_numpy(state: bytes) -> None:
    with pytest.raises(UserError, match=r"^some/file is damaged \(UnpicklingError "):
        load(b"\x80\x02}U\x01acnumpy.core.numeric\n_frombuffer\n(" + state + b"tRs.")


def test_a_disk_that_fails() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(UserError, match=r"^some/file cannot be read \(.*Input/output error\): check the disk"):
        load_arrays(Failing(), "some/file")


@pytest.mark.parametrize(
    "raw", [b"\x80\x02}r\xff\xff\xff\x7f.", b"\x80\x02T\xff\xff\xff\x7f.", b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f."]
)
def test_huge_lengths_take_no_memory(raw: bytes) -> None:
    tracemalloc.start()
    try:
        load(raw)
    except UserError:
        pass
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_every_truncation_is_one_clear_line() -> None:
    for whole in (pickle.dumps({"data": ROWS[:1, :64].copy(), "labels": [1]}, 4), python2_pickle(ROWS[:1], [3])):
        load(whole)
        for length in range(len(whole)):
            with pytest.raises(UserError, match=r"^some/file is damaged .*download it again$"):
                load(whole[:length])
