"""The loader that most people write: a Dataset that decodes and crops with Pillow, a DataLoader with processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.plain_photos import DRAWS, training_view

_MEAN, _STD = (torch.tensor(numbers).view(3, 1, 1) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@dataclass(frozen=True, kw_only=True)
class Photographs(Dataset[Tensor]):
    """Random resized crops of encoded images, mirrored at random: uint8 (H, H, 3), or normalised, fp32 (3, H, H)."""

    data: Sequence[bytes]
    size: int
    min_area: float
    normalised: bool = False

    def __getitem__(self, index: int) -> Tensor:
        draws, flip = torch.rand(DRAWS, dtype=torch.float64).tolist(), bool(torch.rand(()) < 0.5)
        pixels = torch.from_numpy(training_view(self.data[index], self.size, draws, self.min_area, flip).copy())
        if not self.normalised:
            return pixels
        scaled = pixels.permute(2, 0, 1).contiguous().float().div(255)
        return scaled.sub_(_MEAN).div_(_STD)


@dataclass(frozen=True, kw_only=True)
class _Rounds:
    """Each time it is gone through: the indices of a round's batches, at random from so many images."""

    images: int
    batch: int
    batches: int

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.batches):
            yield torch.randint(self.images, (self.batch,)).tolist()

    def __len__(self) -> int:
        return self.batches


def torch_loader(
    data: Sequence[bytes], *, size: int, min_area: float, batch: int, batches: int, processes: int,
    normalised: bool = False, device: torch.device | None = None,
) -> Callable[[], object]:  # fmt: skip
    """One call loads a round's batches, onto ``device`` where that is given. The processes live on between rounds, with
    nothing to do."""
    shape = (batch, 3, size, size) if normalised else (batch, size, size, 3)
    loader = DataLoader(
        Photographs(data=data, size=size, min_area=min_area, normalised=normalised),
        batch_sampler=_Rounds(images=len(data), batch=batch, batches=batches),
        num_workers=processes,
        persistent_workers=True,
        pin_memory=device is not None and device.type == "cuda",
    )

    def load() -> None:
        for pixels in loader:
            assert pixels.shape == shape
            pixels.to(device, non_blocking=True)

    return load
