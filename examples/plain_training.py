"""A training loop of one's own around FastSelfie's parts: `python -m examples.plain_training DATA`.

B images, N patches of which n are visible and m masked, D features, P pixels a side of a patch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastselfie.config import ModelConfig
from fastselfie.kernels import location_head, patch_batch
from fastselfie.models.pooler import AttentionPooler
from fastselfie.models.positions import Positions
from fastselfie.models.resnet import trunk
from fastselfie.pipelines import loader


class Network(nn.Module):
    """Which of the m masked patches belongs at each masked place (the paper's section 2.1)?"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.visible, self.scale = round(0.75 * config.patches), config.features**-0.5
        self.trunk, self.pooler = trunk(config), AttentionPooler(config)
        self.positions = Positions(config.grid, config.features)

    def forward(self, patches: Tensor, places_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and right answers of patches (B * N, 3, P, P), the n visible ones of each image first."""
        n, e_ND = self.visible, self.positions()
        h_BND = self.trunk(patches).unflatten(0, places_BN.shape)
        tokens_BTD = self.pooler.with_u0(h_BND[:, :n] + e_ND[places_BN[:, :n]])
        return location_head(self.pooler(tokens_BTD), e_ND, places_BN[:, n:], h_BND[:, n:], self.scale)


def train(asked: argparse.Namespace) -> Iterator[Tensor]:
    """The loss of each step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(asked.seed)
    config = ModelConfig(image_size=asked.size, patch=asked.patch, width=asked.width)
    network = Network(config).to(device)
    sgd = torch.optim.SGD(network.parameters(), asked.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, asked.steps)
    half = torch.full((3,), 0.5, device=device)
    batches = loader(asked.data, batch_size=asked.batch, size=asked.size, device=device, dtype=torch.uint8)
    for images, _ in batches.steps(0, asked.steps):  # uint8 (B, 3, H, H), channels-last
        places_BN = torch.rand(asked.batch, config.patches, device=device).argsort(dim=1)
        pixels = images.permute(0, 2, 3, 1)
        patches = patch_batch(pixels, patch=config.patch, mean=half, std=half, dtype=half.dtype, places_BN=places_BN)
        loss, _ = network(patches, places_BN)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        cosine.step()
        yield loss.detach()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="a folder of images, or what else --data of fastselfie pretrain may name")
    options = {"steps": 1000, "batch": 64, "size": 224, "patch": 32, "width": 1.0, "lr": 0.1, "seed": 0}
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    for step, loss in enumerate(train(parser.parse_args()), 1):
        print(step, loss.item(), flush=True)
