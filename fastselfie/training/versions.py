"""What a result was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import safetensors
import torch

import fastselfie
from fastselfie.kernels.dispatch import triton_version
from fastselfie.pipelines.decoder import dali_version


def versions() -> dict[str, str | None]:
    """Versions that a result depends on, and the commit of this checkout when it is one."""
    cuda = torch.cuda.is_available()
    return {
        "fastselfie": fastselfie.__version__, "git_commit": _git_commit(), "python": platform.python_version(),
        "torch": torch.__version__, "numpy": numpy.__version__, "safetensors": safetensors.__version__,
        "dali": dali_version(), "triton": triton_version(), "processor": platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()), "gpu": torch.cuda.get_device_name() if cuda else None, "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()) if cuda else None, "processes": os.environ.get("WORLD_SIZE", "1"),
    }  # fmt: skip


def machine(made_by: Mapping[str, Any]) -> str:
    """What computed, of what `versions` has said, for a reader."""
    return str(made_by.get("gpu") or f"{made_by.get('cores')} CPU cores")


def software(made_by: Mapping[str, Any]) -> str:
    """The versions that matter first, of what `versions` has said, for a reader."""
    return f"FastSelfie {made_by.get('fastselfie')}, PyTorch {made_by.get('torch')}"


def _git_commit() -> str | None:
    """As git says; or where it says nothing, as in a copy without its history, what FASTSELFIE_COMMIT does."""
    return _asked_of_git() or os.environ.get("FASTSELFIE_COMMIT") or None


def _asked_of_git() -> str | None:
    here = Path(fastselfie.__file__).parent
    try:
        # Installed into another project's tree, git would answer for that project.
        own = ["git", "-C", str(here), "ls-files", "--error-unmatch", "__init__.py"]
        if subprocess.run(own, capture_output=True, timeout=10, check=False).returncode != 0:
            return None
        asked = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
