"""Cells whose run failed: each says so, and a note below the table says why."""

from __future__ import annotations

from fastselfie.protocol.cells import Failed
from fastselfie.protocol.measured import Failure, Measured, Missing


class Footnotes:
    """Failures that one table owes missing values to, numbered as they come."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured
        self._numbers: dict[Failure, int] = {}

    def cell(self, stage: str, **kind: object) -> Failed | None:
        """What stands in place of a value that runs were to give, None where none of them failed.

        Args:
            stage, kind: fields of `Missing` that say which runs. All their failures get a note, the cell names the
                first one.
        """
        found = [each.failure for each in self._measured.missing if each.stage == stage and _is(each, kind)]
        for failure in found:
            self._numbers.setdefault(failure, len(self._numbers) + 1)
        return Failed(number=self._numbers[found[0]], why=_told(found[0])) if found else None

    def notes(self) -> tuple[str, ...]:
        """A sentence for each failure."""
        return tuple(f"({number}) {_told(failure)}." for failure, number in self._numbers.items())


def _is(missing: Missing, kind: dict[str, object]) -> bool:
    return all(getattr(missing, name) == value for name, value in kind.items())


def _told(failure: Failure) -> str:
    return f"{failure.run} failed: {failure.why}; its log is {failure.log}"
