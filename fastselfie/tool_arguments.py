"""Arguments of the commands that train nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastselfie.config import flag, require, require_local
from fastselfie.pipelines.allotment import cores


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Curves, tables and pictures of runs in one page; the figures also as PNG, in each run's figures/."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Folders of pretraining and finetuning runs, finished or not, and of probes; or the folder of one protocol."""
    out: Path = Path("report.html")
    """The page: one HTML file that needs no other."""

    def __post_init__(self) -> None:
        require_local("--out", self.out)


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a finished run's ResNet-50v2 under the names of timm's resnetv2_50, for plain PyTorch and timm."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="RUN", metavar="RUN")]
    """Folder of a finished run: of pretraining, whose three stages get a fresh fourth, or of finetuning ResNet-50."""
    to: Path
    """The .safetensors file to write; must not exist yet."""

    def __post_init__(self) -> None:
        require_local("--to", self.to)


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """The whole story, small: render JPEG files, pretrain on them, finetune with and without, compare, report."""

    out: Path = Path("demo")
    """Folder of the demo's runs; a half-done demo there is gone on with."""

    def __post_init__(self) -> None:
        require_local("--out", self.out)


@dataclass(frozen=True, kw_only=True)
class RenderArguments:
    """Write the scenes of --data synthetic as JPEG files, in train/ and val/ with class folders."""

    out: Path
    """Folder to make; give it as --data afterwards."""
    size: int = 256
    """Pixels a side."""
    train: int = 8192
    """Scenes to train on."""
    test: int = 2048
    """Scenes to test on."""
    seed: int = 0
    """Decides the scenes; 0 has those of --data synthetic."""

    def __post_init__(self) -> None:
        require_local("--out", self.out)
        require(8 <= self.size <= 4096, f"--size {self.size}: must be at least 8 and at most 4096")
        for name in ("train", "test"):
            value = getattr(self, name)
            require(10 <= value <= 10**7, f"--{name} {value}: must be at least 10, one a class, and at most 10000000")
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: must be at least 0 and below 2**63")


@dataclass(frozen=True, kw_only=True)
class PrepareArguments:
    """Check every image of a data set, shrink the large ones, and pack all into shards that are read fast.

    May be stopped at any moment: the same command goes on after the last finished shard.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(name="SRC", metavar="SRC")]
    """What --data would name: a folder of photographs, or another data set of encoded images."""
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="DST", metavar="DST")]
    """Folder to make; give it as --data afterwards."""
    size: int = 256
    """Pixels that --side has at most afterwards; nothing is enlarged. See --recode for what fits."""
    side: Literal["shorter", "longer"] = "shorter"
    """The side that is measured."""
    quality: int = 95
    """JPEG quality of what is encoded anew; above 95 with whole chroma."""
    recode: Literal["needed", "markers", "all"] = "needed"
    """`needed`: a JPEG that fits keeps its bytes. `markers`: it keeps its pixels, and a CPU decodes crops of it in less
    time. `all`: every image is encoded anew, to decode in less time still."""
    workers: int = dataclasses.field(default_factory=cores)
    """Processes that decode; by default as many as this process may use CPU cores."""
    shard_mb: int = 512
    """MiB of a shard at most."""

    def __post_init__(self) -> None:
        require_local("DST", self.folder)
        require(8 <= self.size <= 16384, f"--size {self.size}: must be at least 8 and at most 16384")
        require(1 <= self.quality <= 100, f"--quality {self.quality}: must be at least 1 and at most 100")
        require(1 <= self.workers <= 1024, f"--workers {self.workers}: must be at least 1 and at most 1024")
        require(1 <= self.shard_mb <= 65536, f"--shard-mb {self.shard_mb}: must be at least 1 and at most 65536")


@dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """What this machine has, what will be used, what is missing and why it matters."""

    data: str | None = None
    """Files or shards, as of pretrain: tells how much memory loading them will take."""
    recipe: str = "imagenet224"
    """Whose views and batches these are: cifar10, imagenet32, imagenet224 or tiny."""
    batch_size: int | None = None
    """Images that a process holds at once, --micro-batch-size of pretrain. None: the recipe's --batch-size."""
    prefetch: int = 2
    """Batches of files that are decoded ahead, as of pretrain."""
    loader_threads: int | None = None
    """Threads that read and decode files, as of pretrain. None: the cores that this process may use."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(
                self.data is not None or value == field.default,
                f"{flag(field.name)} {value}: has no effect without --data; name images or leave it out",
            )
