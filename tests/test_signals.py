"""Being asked to stop: once, the same again from somebody who passes it on, and once more in earnest."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from fastselfie.training import signals
from fastselfie.training.signals import stop_signal
from fastselfie.training.world import World

ALONE = World(device=torch.device("cpu"))


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_one_request_heard_twice_is_one(again: signal.Signals) -> None:
    """Ended by the second, a run would lose what it has not saved."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_signal(ALONE) as stop:
        assert stop.agreed() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), again)
        assert stop.agreed() == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_later_request_ends_the_process_at_once(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_S", 0.0)
    child = os.fork()
    if not child:
        with stop_signal(ALONE):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            os.kill(os.getpid(), number)
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -number


@pytest.mark.parametrize("signalled", [True, False])
def test_nobody_is_left_to_save_with(signalled: bool) -> None:
    """gloo raises it once another process has failed, of which torchrun tells those that are left by SIGTERM."""
    child = os.fork()
    if not child:
        try:
            with stop_signal(ALONE):
                if signalled:
                    os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("Connection closed by peer [127.0.0.1]:24985")
        except RuntimeError:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGTERM if signalled else 3)
