"""A configuration as the words of a command line: what a run was started with can be typed again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fastselfie.config import RunConfig, flag


def words_of(config: RunConfig, default: RunConfig) -> list[str]:
    """Options that turn ``default`` into ``config``: settings that differ, in the order of the fields.

    A setting that is None has no words: it must be None in ``default`` too.
    """
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name != "recipe" and value != getattr(default, field.name):
            words += _words(flag(field.name), value)
    return words


def _words(flag: str, value: Any) -> list[str]:
    match value:
        case None:
            raise ValueError(f"{flag}: None cannot be said on a command line")
        case bool():
            return [flag if value else flag.replace("--", "--no-", 1)]
        case tuple():
            return [flag, *map(str, value)]
        case Path() | str() | int() | float():
            return [flag, str(value)]
    raise TypeError(f"{flag}: {type(value).__name__}")
