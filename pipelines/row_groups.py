"""Row groups of Parquet files, of which the last that were read stay in memory."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from fastselfie.pipelines.image_bytes import BadImage

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE = "image"
"""The column of images: bytes, or a struct with a field ``bytes``."""
_KEPT_BYTES, _KEPT_AT_LEAST = 1 << 28, 2  # two: readers ahead are in the next row group already


class RowGroups:
    """Images of the row groups that were last read; a copy in another process begins empty."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._groups: OrderedDict[tuple[Path, int], Future[pa.ChunkedArray]] = OrderedDict()

    def __reduce__(self) -> tuple[type[RowGroups], tuple[()]]:
        return RowGroups, ()

    def images(self, path: Path, group: int) -> pa.ChunkedArray:
        """Read by the first thread that wants them, the others wait."""
        with self._lock:
            future = self._groups.get((path, group))
            mine = future is None
            if future is None:
                future = self._groups[path, group] = Future()
            self._groups.move_to_end((path, group))
        if mine:
            try:
                future.set_result(_read_group(path, group))
            except BaseException as error:
                with self._lock:
                    self._groups.pop((path, group), None)  # read anew by who comes next
                future.set_exception(error)
            else:
                self._drop_oldest()
        return future.result()

    def _drop_oldest(self) -> None:
        with self._lock:
            sizes = {key: future.result().nbytes for key, future in self._groups.items() if future.done()}
            for key in list(sizes)[:-_KEPT_AT_LEAST]:
                if sum(sizes.values()) > _KEPT_BYTES:
                    del self._groups[key], sizes[key]


def _read_group(path: Path, group: int) -> pa.ChunkedArray:
    """The encoded images of a row group.

    Raises:
        OSError: the storage fails. BadImage: a page cannot be decoded, or does not match its checksum.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            wanted = f"{IMAGE}.bytes" if pa.types.is_struct(file.schema_arrow.field(IMAGE).type) else IMAGE
            column = file.read_row_group(group, [wanted], use_threads=False).column(IMAGE)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadImage(f"lies in row group {group}, which cannot be decoded ({error})") from None
    if pa.types.is_struct(column.type):
        return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], column.type.field("bytes").type)
    return column
