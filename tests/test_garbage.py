"""What the garbage collector leaves alone during a run, and for how long."""

from __future__ import annotations

import gc

import pytest

from fastselfie.training.garbage import frozen_garbage


def seen(one: object) -> bool:
    """By the collector."""
    return any(other is one for other in gc.get_objects())


def test_what_was_there_is_left_alone_and_then_no_more() -> None:
    old: list[object] = [[]]
    assert seen(old)
    with frozen_garbage():
        new: list[object] = [[]]
        assert not seen(old)
        assert seen(new)
    assert seen(old)


def test_what_a_program_has_frozen_stays_so() -> None:
    old: list[object] = [[]]
    gc.freeze()
    try:
        with frozen_garbage():
            new: list[object] = [[]]
        assert not seen(old)
        assert seen(new)
    finally:
        gc.unfreeze()


def test_what_the_interpreter_has_frozen_is_no_programs_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 starts with 375 frozen objects."""
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 375)
    old: list[object] = [[]]
    with frozen_garbage():
        assert not seen(old)
    assert seen(old)


def test_a_failure_inside_unfreezes() -> None:
    old: list[object] = [[]]
    with pytest.raises(KeyError), frozen_garbage():
        raise KeyError
    assert seen(old)
