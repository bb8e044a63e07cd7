"""The networks' shape (paper, sections 2.1, 2.2 and 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from fastselfie.config.checks import require

STAGE_WIDTHS = (64, 128, 256, 512)
EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks' shape (paper, sections 2.1, 2.2 and 3.2)."""

    image_size: int = 32
    """Pixels a side of the images that the network sees."""
    patch: int = 8
    """Pixels a side of a patch; divides the image size. Decides the stem: 7x7 stride 2 and max-pooling from 32 on."""
    width: float = 1.0
    """Multiplies every channel count: 1.0 is ResNet-50's."""
    heads: int = 32
    """Attention heads of the pooler; divides 1024 * width."""
    dropout: float = 0.1
    """Dropout of the pooler, on attention weights and on both outputs of a block."""

    def __post_init__(self) -> None:
        require(self.patch >= 4, f"--patch {self.patch}: a patch has at least 4 pixels a side")
        require(
            self.image_size % self.patch == 0 and self.image_size // self.patch >= 2,
            f"--image-size {self.image_size}: must be a multiple of --patch {self.patch}, and at least twice it",
        )
        require(0 < self.width <= 16, f"--width {self.width}: must be above 0 and at most 16")
        base = STAGE_WIDTHS[0] * self.width
        require(base == int(base), f"--width {self.width}: 64 * width must be a whole number of channels")
        require(
            self.heads >= 1 and self.features % self.heads == 0,
            f"--width {self.width}: {self.features} features do not divide into {self.heads} heads;"
            f" take a width of which 1024 * width is a multiple of --heads",
        )
        require(0 <= self.dropout < 1, f"--dropout {self.dropout}: must be at least 0 and below 1")

    @property
    def grid(self) -> int:
        """Patches a side, G."""
        return self.image_size // self.patch

    @property
    def patches(self) -> int:
        """Patches an image, N."""
        return self.grid**2

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Bottleneck channels of the four stages; a stage puts out four times as many."""
        return tuple(int(width * self.width) for width in STAGE_WIDTHS)

    @property
    def features(self) -> int:
        """Channels that the trunk puts out, D."""
        return EXPANSION * int(STAGE_WIDTHS[2] * self.width)

    @property
    def intermediate(self) -> int:
        """Features between the two linear layers of an attention block: 640 at D = 1024 (paper, section 3.2)."""
        return 5 * self.features // 8
