"""What a decoder raises for images that it cannot decode."""

from __future__ import annotations

from collections.abc import Mapping


class Undecodable(Exception):  # noqa: N818 (what is wrong is the images)
    """Some images cannot be decoded. The decoder has forgotten all that was under way.

    Attributes:
        bad: what is wrong, as in ``is damaged``, by (run, position): run 0 is the oldest under way.
    """

    def __init__(self, bad: Mapping[tuple[int, int], str]) -> None:
        super().__init__(f"{len(bad)} images cannot be decoded")
        self.bad = dict(bad)
