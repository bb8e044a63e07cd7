"""How a process leaves those that it trains with: together at the end, and alone at once after an exception."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from fastselfie.errors import UserError
from fastselfie.training.world import join_world
from tests.warm_start import environment


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As torchrun would start a single process."""
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_the_group_is_left_at_the_end(launched: None) -> None:
    with join_world("cpu") as world:
        assert world.distributed
        assert dist.is_initialized()
    assert not dist.is_initialized()


@pytest.mark.parametrize("error", [RuntimeError, UserError, KeyboardInterrupt])
def test_the_group_is_not_left_after_an_exception(launched: None, error: type[BaseException]) -> None:
    """NCCL finishes all that is under way before it lets a process go, and that may wait for this very process."""
    with pytest.raises(error), join_world("cpu"):
        raise error("something")
    assert dist.is_initialized()


@pytest.mark.parametrize("launched", [True, False])
def test_a_failure_is_told_and_under_torchrun_ends_the_process_at_once(launched: bool) -> None:
    program = (
        "import atexit\nfrom fastselfie import cli, commands\natexit.register(print, 'taken down')\n"
        "commands.COMMANDS['broken'] = lambda words: 1 // 0\ncli.main(['broken'])"
    )
    variables = environment() | ({"WORLD_SIZE": "2"} if launched else {})
    ended = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("ZeroDivisionError")
    assert ("taken down" in ended.stdout) == (not launched)
