"""What a decoder says of images that it cannot decode."""

from __future__ import annotations

from collections.abc import Mapping


class Undecodable(Exception):  # noqa: N818 (what is wrong is the images)
    """Images under way cannot be decoded; the decoder has forgotten everything that was under way.

    Attributes:
        bad: (run, position) to what is wrong, which continues a name, as in ``is damaged``. Run 0 is the oldest under
            way, positions count a run's images from 0.
    """

    def __init__(self, bad: Mapping[tuple[int, int], str]) -> None:
        super().__init__(f"{len(bad)} images cannot be decoded")
        self.bad = dict(bad)
