"""The cores that a process may use, from control groups laid out as Linux does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastselfie.pipelines.allotment import cores

V2 = {"proc/self/cgroup": "0::/pod/job\n"}
V1 = {"proc/self/cgroup": "5:memory:/pod\n4:cpu,cpuacct:/pod\n1:name=systemd:/pod\n"}
PERIOD = "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        (V2, 8),
        (V2 | {"sys/fs/cgroup/pod/job/cpu.max": "max 100000\n"}, 8),
        (V2 | {"sys/fs/cgroup/pod/job/cpu.max": "300000 100000\n"}, 3),
        (V2 | {"sys/fs/cgroup/pod/job/cpu.max": "150000 100000\n"}, 2),
        (V2 | {"sys/fs/cgroup/pod/job/cpu.max": "5000 100000\n"}, 1),
        (V2 | {"sys/fs/cgroup/pod/job/cpu.max": "max 100000", "sys/fs/cgroup/pod/cpu.max": "400000 100000"}, 4),
        (V2 | {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),  # a container sees its own group as the root
        (V2 | {"sys/fs/cgroup/pod/job/cpu.max": "6400000 100000\n"}, 8),
        (V1 | {"sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "-1\n", PERIOD: "100000\n"}, 8),
        (V1 | {"sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "250000\n", PERIOD: "100000\n"}, 3),
        (V1 | {"sys/fs/cgroup/memory/pod/cpu.max": "100000 100000\n"}, 8),
    ],
)  # fmt: skip
def test_quotas(files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert cores(tmp_path) == expected


def test_the_scheduler_may_grant_less_than_the_machine_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert cores(tmp_path) == 2
