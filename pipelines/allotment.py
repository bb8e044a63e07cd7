"""How many cores this process may really use: what the scheduler lets it run on, and what its control groups grant.

A container's share is a quota of its control group; ``os.cpu_count()`` tells of the whole machine, and as many threads
on a small share wait for each other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def cores(system: Path = Path("/")) -> int:
    """Cores, at least 1; a part of one counts as one. Args: system: where ``proc`` and ``sys`` are mounted."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([there, *(math.ceil(quota) for quota in _quotas(system))]))


def _quotas(system: Path) -> Iterator[float]:
    """What each control group that this process is in grants, in cores; a group's parents bind it too."""
    groups = system / "sys" / "fs" / "cgroup"
    for line in _text(system / "proc" / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups if not controllers else next(
            (groups / mount for mount in ("cpu", controllers, "cpu,cpuacct") if (groups / mount).is_dir()), groups
        )  # fmt: skip
        inner = Path(name.lstrip("/"))
        # In a container the group's own folder may be mounted as the root, under another name than the kernel tells.
        for folder in {root, *(root / part for part in (inner, *inner.parents))}:
            yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """Cores that one group grants, if it limits them: version 2 of control groups, then version 1."""
    words = _text(folder / "cpu.max").split()
    if len(words) == 2 and words[0] != "max":
        yield int(words[0]) / int(words[1])
    quota, period = _text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()
    if quota and period and int(quota) > 0:
        yield int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
