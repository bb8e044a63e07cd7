"""The loader that most people write: a Dataset that decodes and crops with Pillow, a DataLoader with processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.plain_photos import DRAWS, training_view


@dataclass(frozen=True, kw_only=True)
class Photographs(Dataset[Tensor]):
    """Random resized crops of encoded images, mirrored at random: uint8 (H, H, 3)."""

    data: Sequence[bytes]
    size: int
    min_area: float

    def __getitem__(self, index: int) -> Tensor:
        draws, flip = torch.rand(DRAWS, dtype=torch.float64).tolist(), bool(torch.rand(()) < 0.5)
        return torch.from_numpy(training_view(self.data[index], self.size, draws, self.min_area, flip).copy())


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
    data: Sequence[bytes], *, size: int, min_area: float, batch: int, batches: int, processes: int
) -> Callable[[], object]:
    """One call loads a round's batches. The processes live on between rounds, with nothing to do."""
    loader = DataLoader(
        Photographs(data=data, size=size, min_area=min_area),
        batch_sampler=_Rounds(images=len(data), batch=batch, batches=batches),
        num_workers=processes,
        persistent_workers=True,
    )

    def load() -> None:
        for pixels in loader:
            assert pixels.shape == (batch, size, size, 3)

    return load
