"""What tests of sources have in common: refusals, and folders that lie behind a URL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from fastselfie.errors import UserError
from fastselfie.pipelines.sources import open_source


def refusal(spec: object, index: Path | None = None) -> str:
    """The one line that ``--data`` ends in."""
    with pytest.raises(UserError) as caught:
        open_source(str(spec), 224, index)
    message = str(caught.value)
    assert message.startswith("--data: ")
    assert "\n" not in message
    return message


@contextmanager
def folders_in_memory(name: str) -> Iterator[Callable[[Path], str]]:
    """Copies a folder into fsspec's memory and gives its URL."""
    system = fsspec.filesystem("memory")

    def copied(folder: Path) -> str:
        for path in folder.iterdir():
            system.pipe_file(f"/{name}/{folder.name}/{path.name}", path.read_bytes())
        return f"memory://{name}/{folder.name}"

    yield copied
    if system.exists(f"/{name}"):
        system.rm(f"/{name}", recursive=True)
