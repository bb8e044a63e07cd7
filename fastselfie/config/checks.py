"""What settings are checked with."""

from __future__ import annotations

import re
from pathlib import Path

from fastselfie.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def require_local(option: str, path: Path | str | None) -> None:
    """Raise `UserError` where a URL is given for a ``path`` to write to: as a path it would make a folder ``s3:``.

    A text where a run's config.json is read.
    """
    require(
        re.match(r"[a-z][a-z0-9+.-]+:/", str(path or "")) is None,
        f"{option} {path}: what is written lies on this machine; name a path of it, and copy that where you like",
    )


def flag(name: str, stage: str = "") -> str:
    """What the user types for the setting ``name``, of a protocol's ``stage`` alone where one is given."""
    prefix = f"--{stage}." if stage else "--"
    return prefix + {"pretrained": "from"}.get(name, name).replace("_", "-")


def contrast(flag: str, then: object, now: object) -> str:
    """What was asked for then and is not now, in the words of the command line: ``--lr 0.1, not 0.2``."""
    if isinstance(then, bool) and isinstance(now, bool):
        stage, dot, name = flag.removeprefix("--").rpartition(".")
        words = {True: flag, False: f"--{stage}{dot}no-{name}"}
        return f"{words[then]}, not {words[now]}"
    return f"{flag} {then}, not {now}"


def label_share(labels: str) -> float:
    """The share in (0, 1] that a text such as ``8%`` means.

    Raises:
        UserError: not a percentage, or not above 0% and at most 100%.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", labels.strip())
    require(match is not None, f"--labels {labels}: write a percentage such as 8%")
    assert match is not None
    share = float(match[1]) / 100
    require(0 < share <= 1, f"--labels {labels}: must be above 0% and at most 100%")
    return share
