"""What a run that was killed while it compiled has left in Inductor's cache, and what stays there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from fastselfie.files import held
from fastselfie.training.compile_cache import compiling


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one of Inductor's."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path


def marks(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.compiling"))


def killed(cache: Path, age_s: float) -> Path:
    """The mark of a process that began to compile that long ago and is no more."""
    with pytest.raises(KeyboardInterrupt), compiling():
        raise KeyboardInterrupt
    (mark,) = marks(cache)
    then = mark.stat().st_mtime - age_s
    os.utime(mark, (then, then))
    return mark


def library(cache: Path, name: str, age_s: float = 0.0) -> Path:
    file = cache / name[:2] / f"{name}.main.so"
    file.parent.mkdir(exist_ok=True)
    (cache / "locks").mkdir(exist_ok=True)
    file.write_bytes(b"\x7fELF")
    os.utime(file, (file.stat().st_mtime - age_s,) * 2)
    return file


def test_what_a_killed_run_compiled_is_compiled_anew(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    killed(cache, age_s=60)
    before, cut, whole = library(cache, "before", age_s=61), library(cache, "cut", age_s=1), library(cache, "whole")
    with compiling():
        assert len(marks(cache)) == 1
    assert before.exists()
    assert not cut.exists()
    assert not whole.exists(), "by its size and its first bytes none can be told from a cut one"
    assert marks(cache) == []
    assert "compiling anew 2 kernels in" in capsys.readouterr().err
    with compiling():
        pass
    assert before.exists()
    assert capsys.readouterr().err == ""


def test_what_others_compile_is_left_to_them(cache: Path) -> None:
    alive = library(cache, "alive")
    with compiling(), compiling():  # each is another open file: as of two processes
        assert len(marks(cache)) == 2
    assert alive.exists()
    killed(cache, age_s=60)
    theirs = library(cache, "theirs")
    with held(cache / "locks" / "theirs.lock"), compiling():
        assert theirs.exists()
    assert not alive.exists()


def test_nobody_compiles_beside_what_is_being_removed(cache: Path) -> None:
    begun = threading.Event()

    def compile_something() -> None:
        with compiling():
            begun.set()

    with held(cache / "fastselfie-lock"):
        thread = threading.Thread(target=compile_something)
        thread.start()
        assert not begun.wait(0.2)
        assert marks(cache) == []
    thread.join(10)
    assert begun.is_set()


def test_inductor_writes_its_libraries_where_they_are_looked_for(cache: Path) -> None:
    """And makes one anew that is gone, with what else it keeps of a graph still there."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache  # takes as long to import as torch

    x = torch.linspace(-1, 1, 1000)

    def compile_and_run() -> list[Path]:
        torch._dynamo.reset()
        CppPythonBindingsCodeCache.cache_clear()
        run = torch.compile(lambda x: x.sin() * 2 + 1)
        assert torch.allclose(run(x).double(), x.double().sin() * 2 + 1, atol=1e-6)
        return sorted(cache.glob("*/*.main.so"))

    killed(cache, age_s=1)
    (kernel,) = compile_and_run()
    assert (cache / "locks" / f"{kernel.name.removesuffix('.main.so')}.lock").exists()
    whole = kernel.read_bytes()
    kernel.unlink()  # this process has it loaded
    kernel.write_bytes(whole[:100])
    with compiling():
        assert not kernel.exists()
        assert compile_and_run() == [kernel]
    assert kernel.read_bytes() == whole
