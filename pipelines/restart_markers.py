"""Restart markers put into a JPEG file that keeps its pixels: a decoder can then start at each of them.

The coefficients stay exactly what they are, as `jpegtran -restart` leaves them: their Huffman codes are read and
written again with other markers between them, and with DC coded anew, of which each interval starts from 0.
"""

from __future__ import annotations

import importlib

import numpy as np
from numpy.typing import NDArray

from fastselfie.errors import UserError
from fastselfie.pipelines.jpeg_scan import Scan, UnusualJpeg, read_scan

_LONGEST_INTERVAL = 0xFFFF
_DEFINITION_BYTES = 16 + 256  # of a Huffman table, at most
# T.81's tables K.3 and K.4, which have a code for every category.
_LUMINANCE_DC = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, *range(12)])
_CHROMINANCE_DC = bytes([0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, *range(12)])


def require_numba() -> None:
    """Raises `UserError` where numba is not installed, or does not go with the NumPy that is."""
    try:
        importlib.import_module("numba")
    except ImportError as error:
        raise UserError(f"restart markers need numba: pip install 'fastselfie[markers]' ({error})") from None


def with_restart_markers(data: bytes, interval: int) -> bytes | None:
    """`data`, a JPEG file, with a restart marker after every ``interval`` MCUs; None where it is damaged, or not
    Huffman-coded in 8 bits and one sequential scan of all its 1, 3 or 4 components.

    Markers that it has go. Of its header only what that needs changes: the segment of the interval, and a table of DC
    that lacks a code makes room for a standard one. Fill bytes and what follows the image's end are dropped, and so is
    the index of further pictures there.

    Raises:
        ValueError: ``interval`` is not within 1 to 65535.
    """
    if not 1 <= interval <= _LONGEST_INTERVAL:
        raise ValueError(f"interval is {interval}, and a file can say 1 to {_LONGEST_INTERVAL}")
    try:
        scan = read_scan(data)
    except UnusualJpeg:
        return None
    replaced: dict[int, bytes] = {}
    coded, lacking = _recoded(data, scan, interval, replaced)
    while lacking is not None:  # mostly found out at one of the first markers; a standard table lacks none
        replaced[lacking] = _CHROMINANCE_DC if lacking else _LUMINANCE_DC
        coded, lacking = _recoded(data, scan, interval, replaced)
    return None if coded is None else scan.header(interval, replaced) + coded


def _recoded(data: bytes, scan: Scan, interval: int, replaced: dict[int, bytes]) -> tuple[bytes | None, int | None]:
    """The entropy-coded data up to the file's end, with other tables of DC written; None where it is damaged, or a
    table of DC lacks a code, whose name is told then."""
    from fastselfie.pipelines.huffman_tables import lookups  # numba is an extra: only here
    from fastselfie.pipelines.restart_coding import DONE, LACKING, recode

    dc, ac = (sorted({pair[kind] for pair in scan.selectors}) for kind in (0, 1))
    short, starts, long, _ = lookups(_definitions([scan.tables[name] for name in (*dc, *ac)]), len(dc))
    *_, codes = lookups(_definitions([replaced.get(name, scan.tables[name]) for name in dc]), len(dc))
    selected = [scan.selectors[component] for component in scan.components_B]
    layout = np.array(
        [
            scan.components_B,
            [dc.index(name) for name, _ in selected],
            [len(dc) + ac.index(name) for _, name in selected],
        ]
    )
    state, coded, row = recode(
        np.frombuffer(data, np.uint8), scan.stop, layout, scan.mcus, scan.interval, interval, short, starts, long, codes
    )
    return coded.tobytes() if state == DONE else None, dc[row] if state == LACKING else None


def _definitions(tables: list[bytes]) -> NDArray[np.uint8]:
    filled = b"".join(table.ljust(_DEFINITION_BYTES, b"\0") for table in tables)
    return np.frombuffer(filled, np.uint8).reshape(-1, _DEFINITION_BYTES)
