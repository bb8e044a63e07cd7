"""Reads pickled NumPy arrays without running anything that the pickle asks for.

The data sets of this field (CIFAR-10, downsampled ImageNet) are published as pickles, and a pickle may name any
function to be called while it loads. Here the names of NumPy's own constructors are answered by stand-ins written in
Python, every other name is refused before anything of it is imported, and opcodes that arrays do not need are unknown.
So a hostile or damaged file reaches neither the interpreter nor NumPy's C code with arguments of its choice.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastselfie.errors import UserError

_NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})

# What plain containers and arrays are pickled with, protocols 0 to 5. Left out: persistent ids, the extension registry,
# sets, out-of-band buffers, and every way but REDUCE to make an instance.
_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2),
    *(pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.FLOAT, pickle.BINFLOAT),
    *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES),
    *(pickle.BINBYTES8, pickle.BYTEARRAY8, pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
    *(pickle.BINUNICODE8, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE),
)


class _RefusedError(Exception):
    """The pickle is whole but holds what is not an array of numbers; the message names that."""


class _Dtype:
    """Stands in for ``numpy.dtype``: numbers of a fixed size, nothing structured, no Python objects."""

    __slots__ = ("code", "order")

    def __init__(self, code: str | bytes, *_flags: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(text, str) or text not in _NUMBERS:
            raise _RefusedError(f"an array of dtype {ascii(text)[:40]}")
        self.code, self.order = text, "="

    def restore(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("unknown byte order")
        self.order = order

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Dictionary(dict[Any, Any]):
    """Its keys are plain: to hash a tuple of a tuple of a million tuples overflows the interpreter's stack."""

    def __setitem__(self, key: object, value: object) -> None:
        if not isinstance(key, str | bytes | int | float | None):
            raise pickle.UnpicklingError("a key that is neither a text nor a number")
        super().__setitem__(key, value)


class _Array:
    """Stands in for an array that is made empty and gets its contents afterwards."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: NDArray[Any] | None = None

    def restore(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, raw = state
        self.array = _view(raw, dtype, shape, "F" if is_fortran else "C")


def _view(raw: object, dtype: object, shape: Any, order: object) -> NDArray[Any]:
    """The array that lies in ``raw``: no copy, hence read-only."""
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise pickle.UnpicklingError("not the state of an array")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise pickle.UnpicklingError("not the shape of an array")
    if math.prod(shape) * dtype.numpy().itemsize != len(raw):
        raise pickle.UnpicklingError("the array's shape and its bytes disagree")
    return np.ndarray(shape, dtype=dtype.numpy(), buffer=raw, order="F" if order == "F" else "C")


_NDARRAY = object()  # what the name numpy.ndarray stands for: a mark, not something to call


def _reconstruct(kind: object, _shape: object, _code: object) -> _Array:
    if kind is not _NDARRAY:
        raise _RefusedError("a subclass of numpy.ndarray")
    return _Array()


def _frombuffer(raw: object, dtype: object, shape: object, order: object) -> _Array:
    result = _Array()
    result.array = _view(raw, dtype, shape, order)
    return result


def _scalar(dtype: object, raw: object) -> Any:
    return _view(raw, dtype, (), "C").item()


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in protocols 0 to 2. Any other encoding would import a module by its name."""
    if encoding != "latin1":
        raise _RefusedError(f"a text encoded as {ascii(encoding)[:40]}")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): lambda: b"",  # how Python 3 writes b"" in protocols 0 to 2
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")  # NumPy 1 and NumPy 2
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}


class _WholeLines:
    """A file whose last line counts as damage when it is cut off: the unpickler would take it for a shorter name."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self._next_line = file.read, file.readline

    def readline(self) -> bytes:
        line = self._next_line()
        if not line.endswith(b"\n"):
            raise EOFError
        return line


class _ArrayUnpickler(pickle._Unpickler):
    """Python's own unpickler in Python, not the one in C: that one gives memory to any memo index a file names (a
    flipped bit can ask for 32 GB), and its table of opcodes cannot be narrowed."""

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _RefusedError(ascii(f"{module}.{name}")[1:-1][:120])
        return _ADMITTED[module, name]

    def load_build(self) -> None:
        # The inherited one sets attributes of whatever lies on the stack, the stand-ins' own functions included.
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Dtype | _Array):
            raise pickle.UnpicklingError("a state for something that has none")
        self.stack[-1].restore(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_empty_dictionary(self) -> None:
        self.append(_Dictionary())

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary

    def load_dict(self) -> None:
        items, made = self.pop_mark(), _Dictionary()
        for key, value in zip(items[::2], items[1::2], strict=True):
            made[key] = value
        self.append(made)

    dispatch[pickle.DICT[0]] = load_dict


def load_arrays(file: BinaryIO, name: str) -> dict[str, object]:
    """The dictionary pickled in ``file`` by Python 2 or 3, any protocol.

    Args:
        file: open for reading bytes.
        name: what messages call the file.

    Returns:
        Keys as str. Values that are arrays are read-only views of the bytes read; Python 2 strings are bytes.

    Raises:
        UserError: the file is damaged, is no dictionary, or holds anything but numbers, texts, lists, tuples,
            dictionaries and arrays of numbers.
    """
    try:
        loaded = _ArrayUnpickler(_WholeLines(file), encoding="bytes").load()
        pairs = [(key.decode() if isinstance(key, bytes) else key, value) for key, value in loaded.items()]
        arrays = {key: value.array if isinstance(value, _Array) else value for key, value in pairs}
    except _RefusedError as refused:
        raise UserError(
            f"{name} holds {refused}, which is not loaded because it might run code: only arrays of numbers in plain "
            "containers are; get the file from its official place"
        ) from None
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error}): check the disk, or download it again") from None
    except Exception as error:  # nothing but the file decides what is raised, and there are a dozen ways
        raise UserError(f"{name} is damaged ({type(error).__name__} while reading it): download it again") from None
    if not all(isinstance(key, str) for key in arrays):
        raise UserError(f"{name} is not a batch of images: its keys are not names; download it again")
    return arrays
