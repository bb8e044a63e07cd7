"""Images that a run met and could not use: named in quarantine.csv, counted, and bounded in number."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from fastselfie.errors import UserError, one_line
from fastselfie.files import replace_bytes
from fastselfie.pipelines.refusal import Refused
from fastselfie.training.reporter import say
from fastselfie.training.world import World

NAME = "quarantine.csv"
_COLUMNS = ("image", "reason", "step")


class Quarantine:
    """The bad images of a run, the same in all processes after each `settle`."""

    def __init__(self, images: int, max_share: float) -> None:
        """Args: images: that the run may use. max_share: of them that may be bad before it is to stop."""
        self._images, self._max_share = images, max_share
        self._known: dict[str, tuple[str, int]] = {}
        self._met: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._known)

    def note(self, refused: Iterable[Refused]) -> None:
        """Remember what this process met."""
        self._met.update((image.name, image.reason) for image in refused if image.name not in self._known)

    def settle(self, world: World, folder: Path, done: int) -> None:
        """Tell each other what was met in the ``done`` steps so far, and write it down. Called in all processes."""
        news: dict[str, str] = {}
        for met in world.gather_objects(self._met):
            news |= {name: reason for name, reason in met.items() if name not in news}
        self._met = {}
        if not news:
            return
        self._known |= {name: (news[name], done) for name in sorted(news)}
        world.in_main(lambda: self._write(folder))
        if world.is_main:
            (name, reason), total = min(news.items()), len(self._known)
            more = f" and {len(news) - 1} more" if len(news) > 1 else ""
            say(one_line(f"{folder}: going on without {name} ({reason}){more}; {total} in {NAME}"))

    def check(self) -> None:
        """Raises `UserError` where more images are bad than may be."""
        if len(self._known) > self._max_share * self._images:
            name, (reason, _) = next(iter(self._known.items()))
            raise UserError(
                f"--max-bad-share {self._max_share}: {len(self._known)} of {self._images} images cannot be used (the"
                f" first: {name} {reason}; all: {NAME}); mend them or allow a larger share and run the same command"
            )

    def restore(self, world: World, folder: Path, done: int) -> None:
        """Take over what was written down in the first ``done`` steps; the rest will be met again.

        Raises:
            UserError: somebody changed the file to what cannot be understood.
        """

        def kept() -> dict[str, tuple[str, int]]:
            if (folder / NAME).exists():
                text = (folder / NAME).read_bytes().decode(errors="surrogateescape")
                try:
                    rows = [
                        (row["image"], row["reason"], int(row["step"])) for row in csv.DictReader(io.StringIO(text))
                    ]
                except (KeyError, TypeError, ValueError, csv.Error):
                    raise UserError(f"{folder / NAME}: is damaged; delete it, what is bad will be met again") from None
                self._known = {name: (reason, step) for name, reason, step in rows if step <= done}
                self._write(folder)
            return self._known

        self._known = world.in_main(kept)

    def _write(self, folder: Path) -> None:
        if not self._known:
            (folder / NAME).unlink(missing_ok=True)
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((name, reason, step) for name, (reason, step) in self._known.items())
        replace_bytes(folder / NAME, text.getvalue().encode(errors="surrogateescape"))
