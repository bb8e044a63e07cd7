"""What can be told of a file's bytes without decoding them: is it an image at all, and is its end there?

The decoders below DALI print lines of their own about such files; found here, they are one line. It also does not
depend on the crop then: a region above the place where a JPEG file is cut off would decode.
"""

from __future__ import annotations

from pathlib import Path

from fastselfie.errors import LocalError

REMEDY = "put a readable image of that name in its place and run the same command again"
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"


def fault(data: bytes) -> str | None:
    """What is wrong with a JPEG or PNG file's bytes, as far as its ends tell; None if nothing."""
    if not data:
        return "is empty"
    for start, end in ((_JPEG, _JPEG_END), (_PNG, _PNG_END)):
        if data.startswith(start):
            # Other bytes may follow the end mark; cameras and editors put them there.
            return None if data.rfind(end) > 0 else "is cut off"
    return "is no JPEG or PNG image"


def read_image_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        LocalError: it cannot be read, or `fault` finds one; names it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LocalError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    wrong = fault(data)
    if wrong:
        raise LocalError(f"{path}: {wrong}; {REMEDY}")
    return data
