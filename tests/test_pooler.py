"""Attention pooling: size by arithmetic, the last block's single query, BERT's places of dropout, initial weights."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.baselines.plain_selfie import AttentionLayer
from fastselfie.models.pooler import AttentionBlock, AttentionPooler, PlainPooler, make_pooler
from tests.small_networks import assert_near, model_config, pretrain_config, randomise

ROUNDING = 1e-12


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_parameters() -> None:
    D, I = 1024, 640
    attention = 4 * (D * D + D)
    feed_forward = D * I + I + I * D + D
    norms = 2 * 2 * D
    assert 3 * (attention + feed_forward + norms) + D == 16_545_664
    pooler = AttentionPooler(model_config(width=1.0, heads=32))
    assert sum(parameter.numel() for parameter in pooler.parameters()) == 16_545_664


def test_the_last_block_makes_one_token() -> None:
    """The same u, and the same gradients, as from computing every output token of every block and discarding all but
    the first. Biases are off 0, and so are norms'."""
    pooler = AttentionPooler(model_config()).double().eval()
    randomise(pooler)
    h_BnD = random(3, 12, 64).requires_grad_()

    def every_token() -> Tensor:
        x_BTD = torch.cat([pooler.u0.expand(3, 1, -1), h_BnD], dim=1)
        for block in pooler.blocks:
            x_BTD = block(x_BTD)
        assert x_BTD.shape == (3, 13, 64)
        return x_BTD[:, 0]

    leaves = [h_BnD, *pooler.parameters()]
    results = []
    for u_BD in (pooler(pooler.with_u0(h_BnD)), every_token()):
        results.append([u_BD, *torch.autograd.grad(u_BD, leaves, random(3, 64))])
    names = ["u", "h", *(name for name, _ in pooler.named_parameters())]
    for name, a, b in zip(names, *results, strict=True):
        assert_near(a, b, ROUNDING, name)


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 17)])
def test_one_token_with_dropout(shape: tuple[int, int]) -> None:
    """Head by head in NumPy, from keys and values of all tokens, with the masks that the same seed draws: for each
    token's share in each head, then for both outputs."""
    B, T = shape
    block = AttentionBlock(model_config(dropout=0.3)).double()
    randomise(block)
    x_BTD, D, d = random(B, T, 64), 64, 16
    torch.manual_seed(5)
    found_BD = block.first(x_BTD)
    torch.manual_seed(5)
    kept_BKT, *kept_BD = (F.dropout(torch.ones(*size).double(), 0.3) for size in ((B, 4, T), (B, D), (B, D)))
    q, k, v = np.split(block.qkv(x_BTD).detach().numpy(), 3, axis=2)
    mixed_BD = np.zeros((B, D))
    for image, head in itertools.product(range(B), range(4)):
        its = slice(head * d, (head + 1) * d)
        powers_T = np.exp(k[image, :, its] @ q[image, 0, its] / 4)
        mixed_BD[image, its] = (kept_BKT[image, head].numpy() * powers_T / powers_T.sum()) @ v[image, :, its]
    with torch.no_grad():
        x_BD = block.attention_norm(x_BTD[:, 0] + kept_BD[0] * block.out(torch.from_numpy(mixed_BD)))
        y_BD = block.contract(F.gelu(block.expand(x_BD)))
        assert_near(found_BD, block.output_norm(x_BD + kept_BD[1] * y_BD), ROUNDING)


def test_one_token_in_bf16() -> None:
    """As near to the truth as that token of all that `forward` makes in bf16, twice over: under autocast, and of a
    network that is bf16 itself."""
    block, x_BTD = AttentionBlock(model_config(width=0.5)).double().eval(), random(16, 13, 512)
    randomise(block)
    truth_BD = block(x_BTD)[:, 0]
    block.float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        one_BD, all_BTD = block.first(x_BTD.float()), block(x_BTD.float())
    assert (one_BD - truth_BD).abs().max() <= 2 * (all_BTD[:, 0] - truth_BD).abs().max()
    block.bfloat16()
    one_BD, all_BTD = block.first(x_BTD.bfloat16()), block(x_BTD.bfloat16())
    assert one_BD.dtype == torch.bfloat16
    assert (one_BD - truth_BD).abs().max() <= 2 * (all_BTD[:, 0] - truth_BD).abs().max()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_block_is_berts(dropout: float) -> None:
    """Against nn.MultiheadAttention. With dropout, both draw from the same seed: only if all three are in the same
    places, on attention weights, on the attention's output and on the second layer's output, do results agree.

    One image, because nn.MultiheadAttention lays several out token by token, which permutes what is drawn.
    """
    block = AttentionBlock(model_config(dropout=dropout)).double()
    plain = AttentionLayer(64, 4, dropout).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # both list their parameters in the order of the computation
        for ours, theirs in zip(block.parameters(), plain.parameters(), strict=True):
            ours.copy_(0.3 * torch.randn(ours.shape, generator=generator, dtype=ours.dtype))
            theirs.copy_(ours)
    x_1TD = random(1, 13, 64)
    torch.manual_seed(5)
    y_1TD = block(x_1TD)
    torch.manual_seed(5)
    assert_near(y_1TD, plain(x_1TD), ROUNDING)
    assert bool((block.eval()(x_1TD) - y_1TD).abs().max() > 0.1) is (dropout > 0)


def test_order_of_visible_patches_does_not_matter() -> None:
    pooler = AttentionPooler(model_config()).double().eval()
    h_BnD = random(2, 12, 64)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled, ordered = (pooler(pooler.with_u0(x_BnD)) for x_BnD in (h_BnD[:, order], h_BnD))
    assert_near(shuffled, ordered, ROUNDING)


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_plain_poolers(kind: Any) -> None:
    """Against loops in NumPy, gradients too: a share of each token, or all of it to the largest. Whatever u0 is."""
    pooler = make_pooler(pretrain_config(pooler=kind))
    assert isinstance(pooler, PlainPooler)
    assert list(pooler.state_dict()) == list(pooler.parameters()) == []
    assert bool((pooler.u0 == 0).all())
    h_BnD, g_BD = random(2, 12, 64).requires_grad_(), random(2, 64)
    tokens = torch.cat([torch.full((2, 1, 64), 100.0, dtype=torch.float64), h_BnD], dim=1)
    u_BD = pooler(tokens)
    (gradient,) = torch.autograd.grad(u_BD, h_BnD, g_BD)
    for image, tokens_nD in enumerate(h_BnD.detach().numpy()):
        for feature in range(64):
            column = tokens_nD[:, feature].tolist()
            expected = sum(column) / 12 if kind == "mean" else max(column)
            assert float(u_BD.detach()[image, feature]) == pytest.approx(expected, rel=ROUNDING)
            whole = float(g_BD[image, feature])
            shares = [whole / 12 if kind == "mean" else whole * (value == max(column)) for value in column]
            assert gradient[image, :, feature].tolist() == pytest.approx(shares, rel=ROUNDING)


@pytest.mark.parametrize("depth", range(5))
def test_depths(depth: int) -> None:
    """As many blocks as asked for, one after the other; without any u is u0 and nothing else."""
    pooler = make_pooler(pretrain_config(pooler_depth=depth))
    assert isinstance(pooler, AttentionPooler)
    assert len(pooler.blocks) == depth
    x_BTD = pooler.double().eval().with_u0(random(3, 12, 64))
    u_BD, y_BTD = pooler(x_BTD), x_BTD
    for block in pooler.blocks:
        y_BTD = block(y_BTD)
    assert_near(u_BD, y_BTD[:, 0], ROUNDING)
    if depth == 0:
        assert torch.equal(u_BD, pooler.u0.expand(3, -1))


def test_initial_weights() -> None:
    """A normal distribution of deviation 0.02, cut at two deviations: what is left of it deviates by 0.0176."""
    torch.manual_seed(0)
    pooler = AttentionPooler(model_config(width=0.5, heads=32))
    linear = [module for module in pooler.modules() if isinstance(module, nn.Linear)]
    norms = [module for module in pooler.modules() if isinstance(module, nn.LayerNorm)]
    assert (len(linear), len(norms)) == (12, 6)
    for weight in (pooler.u0.detach(), *(layer.weight.detach() for layer in linear)):
        assert 0.035 < weight.abs().max() <= 0.04
        assert weight.std().item() == pytest.approx(0.0176, rel=5 * (0.5 / weight.numel()) ** 0.5)
    assert all((layer.bias == 0).all() for layer in linear)
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() and norm.eps == 1e-12 for norm in norms)
