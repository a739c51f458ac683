"""Zero-gated attention to prompt tokens: against loops over heads, and in every family of plain ViTs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_transformers import tiny_clip, tiny_dinov2, tiny_vit
from torch import Tensor

from fedprompt.backbones.attention import Block, Tokens, attend_to_tokens, run_blocks
from fedprompt.backbones.base import Backbone, freeze
from fedprompt.backbones.clip import CLIP
from fedprompt.backbones.dinov2 import DINOv2
from fedprompt.backbones.vit import ViT


@pytest.fixture(scope="module", params=["vit", "dinov2", "registers", "clip"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder: Path = tmp_path_factory.mktemp(request.param)
    found: Backbone
    if request.param == "vit":
        found = ViT.from_pretrained(tiny_vit(folder))
    elif request.param == "clip":
        found = CLIP.from_pretrained(tiny_clip(folder))
    else:
        registers = 2 if request.param == "registers" else 0
        found = DINOv2.from_pretrained(tiny_dinov2(folder, registers=registers))
    freeze(found)
    return found


@pytest.fixture(scope="module")
def images(backbone: Backbone) -> Tensor:
    side = 5 * backbone.geometry.multiple  # one patch more than in its training
    return torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(0))


def make_tokens(enter: tuple[int, ...], gates: tuple[int, ...], *, batch: int | None = None) -> Tokens:
    generator = torch.Generator().manual_seed(7)
    shape = (2, 24) if batch is None else (batch, 2, 24)
    return Tokens(
        {i: torch.randn(shape, generator=generator).requires_grad_() for i in enter},
        {i: torch.randn(3, generator=generator).requires_grad_() for i in gates},
    )


DEEP = ((1, 2), (1, 2))
SHALLOW = ((0,), (0, 1, 2))
MIXED = ((0, 2), (0, 1, 2))


def slow_attention(block: Block, queries: Tensor, keys: Tensor, head: int) -> Tensor:
    """What one head of a block reads from normed rows (K, D) for normed rows (Q, D)."""
    d = queries.shape[1] // block.heads
    part = slice(head * d, (head + 1) * d)
    q, k, v = block.query(queries)[:, part], block.key(keys)[:, part], block.value(keys)[:, part]
    scores = torch.stack([(k * row).sum(dim=1) for row in q]) / d**0.5
    weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
    return weights @ v


def slow_rest(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    update = block.out(attended)
    x = x + (block.scale_attention(update) if block.scale_attention else update)
    update = block.mlp(block.norm_mlp(x))
    return x + (block.scale_mlp(update) if block.scale_mlp else update)


def slow_run(blocks: list[Block], x: Tensor, start: int, tokens: Tokens) -> Tensor:
    """The hidden states of one image (N, D) with its tokens (P, D), head by head."""
    present = None
    for index in range(start, len(blocks)):
        block, heads = blocks[index], range(blocks[index].heads)
        image = block.norm_attention(x)
        attended = torch.cat([slow_attention(block, image, image, h) for h in heads], dim=1)
        if index in tokens.gates:
            present = tokens.enter.get(index, present)
            prompt = block.norm_attention(present)
            gated = [tokens.gates[index][h] * slow_attention(block, image, prompt, h) for h in heads]
            attended = attended + torch.cat(gated, dim=1)
            everything = torch.cat([image, prompt])
            of_tokens = torch.cat([slow_attention(block, prompt, everything, h) for h in heads], dim=1)
            present = slow_rest(block, present, of_tokens)
        x = slow_rest(block, x, attended)
    return x


@pytest.mark.parametrize("layout", [DEEP, SHALLOW, MIXED])
def test_prompted_blocks_against_loops_over_heads(backbone: Backbone, images: Tensor, layout: tuple) -> None:
    start = layout[0][0]
    (state,) = backbone.encode(images, stop=start)
    tokens = make_tokens(*layout)
    blocks = backbone._blocks()
    found = run_blocks(blocks, state, start, tokens)
    expected = torch.stack([slow_run(blocks, image, start, tokens) for image in state])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - run_blocks(blocks, state, start)).abs().max() > 1e-2


@pytest.mark.parametrize("layout", [DEEP, SHALLOW])
def test_tokens_of_each_image_act_on_that_image(backbone: Backbone, images: Tensor, layout: tuple) -> None:
    start = layout[0][0]
    state = backbone.encode(images, stop=start)
    tokens = make_tokens(*layout, batch=2)
    together = backbone.resume(state, start, tokens)
    for image in range(2):
        own = Tokens({i: t[image] for i, t in tokens.enter.items()}, tokens.gates)
        alone = backbone.resume((state[0][image : image + 1],), start, own)
        for both, one in zip(together, alone, strict=True):
            torch.testing.assert_close(both[image : image + 1], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [DEEP, SHALLOW])
def test_zero_gates_are_the_frozen_backbone_and_open_by_gradient(
    backbone: Backbone, images: Tensor, layout: tuple
) -> None:
    frozen = backbone.encode(images)
    tokens = make_tokens(*layout)
    with torch.no_grad():
        for gate in tokens.gates.values():
            gate.zero_()
    start = layout[0][0]
    state = backbone.encode(images, stop=start)
    prompted = backbone.resume(state, start, tokens)
    for untouched, found in zip(frozen, prompted, strict=True):
        assert (untouched - found).abs().max() < 1e-5
    backbone.pool(prompted)[:, 0].square().sum().backward()
    assert all(gate.grad is not None and gate.grad.abs().min() > 0 for gate in tokens.gates.values())
    assert all(torch.count_nonzero(entered.grad) == 0 for entered in tokens.enter.values())
    with torch.no_grad():
        for gate in tokens.gates.values():
            gate.fill_(0.1)
    backbone.pool(backbone.resume(state, start, tokens))[:, 0].square().sum().backward()
    assert all(entered.grad.abs().max() > 0 for entered in tokens.enter.values())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_gradients_are_those_of_finite_differences(tmp_path: Path) -> None:
    blocks = ViT.from_pretrained(tiny_vit(tmp_path)).double().requires_grad_(False)._blocks()
    tokens = make_tokens((1,), (1, 2))
    generator = torch.Generator().manual_seed(1)
    state, weights = torch.randn((2, 2, 5, 24), generator=generator, dtype=torch.float64)

    def loss(entered: Tensor, first: Tensor, second: Tensor) -> Tensor:
        prompted = Tokens({1: entered}, {1: first, 2: second})
        return (weights * run_blocks(blocks, state, 1, prompted)).sum()

    inputs = [*tokens.enter.values(), *tokens.gates.values()]
    assert torch.autograd.gradcheck(loss, [x.detach().double().requires_grad_() for x in inputs])


def test_token_rows_are_computed_only_where_a_later_block_sees_them(
    backbone: Backbone, images: Tensor
) -> None:
    (state,) = backbone.encode(images, stop=0)
    for (enter, gates), expected in {DEEP: [], SHALLOW: [0, 1], MIXED: [0], ((0,), (0, 1)): [0]}.items():
        seen: list[int] = []

        def mlp(x: Tensor, block: Block, index: int, seen: list[int] = seen) -> Tensor:
            if x.shape[1] == 2:  # the tokens; an image has more rows
                seen.append(index)
            return block.mlp(x)

        blocks = [
            replace(block, mlp=lambda x, block=block, index=index: mlp(x, block, index))
            for index, block in enumerate(backbone._blocks())
        ]
        run_blocks(blocks, state, 0, make_tokens(enter, gates))
        assert seen == expected, (enter, gates)


@pytest.mark.parametrize(
    ("enter", "gates", "said"),
    [
        ((0, 1), (0, 1), "expected blocks 1 to 2, got 0"),
        ((2, 3), (2, 3), "expected blocks 1 to 2, got 3"),
        ((1, 2), (1,), "expected a gate for block 2"),
        ((2,), (1, 2), "reach block 1"),
    ],
)
def test_tokens_that_cannot_act_are_refused(
    backbone: Backbone, enter: tuple[int, ...], gates: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        backbone.resume((torch.zeros(1, 26, 24),), 1, make_tokens(enter, gates))


def test_mixed_precision_keeps_prompts_in_float32(backbone: Backbone, images: Tensor) -> None:
    tokens = make_tokens(*SHALLOW)
    exact = backbone.resume(backbone.encode(images, stop=0), 0, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = backbone.resume(backbone.encode(images, stop=0), 0, tokens)
        torch.stack([feature.float().square().mean() for feature in rounded]).sum().backward()
    for found, expected in zip(rounded, exact, strict=True):
        torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    for tensor in (*tokens.enter.values(), *tokens.gates.values()):
        assert tensor.grad.dtype == torch.float32
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().max() > 0


def test_attention_with_zero_gates_is_exactly_zero() -> None:
    query, key, value = torch.randn((3, 2, 3, 4, 8), generator=torch.Generator().manual_seed(0))
    assert torch.count_nonzero(attend_to_tokens(query, key, value, torch.zeros(3), 0.3)) == 0
    one = attend_to_tokens(query, key, value, torch.tensor([0.0, 0.0, 2.0]), 0.3)
    assert torch.count_nonzero(one[:, :2]) == 0
    expected = 2 * ((0.3 * query[:, 2] @ key[:, 2].mT).softmax(dim=-1) @ value[:, 2])
    torch.testing.assert_close(one[:, 2], expected)


def test_a_stop_in_front_of_any_block_and_a_resumption_are_one_run(
    backbone: Backbone, images: Tensor
) -> None:
    whole = backbone.encode(images)
    for stop in range(backbone.geometry.blocks):
        state = backbone.encode(images, stop=stop)
        assert len(state) == 1
        assert state[0].shape[::2] == (2, backbone.geometry.width)
        for found, expected in zip(backbone.resume(state, stop), whole, strict=True):
            assert torch.equal(found, expected)


def test_geometry_counts_blocks_heads_and_widths(backbone: Backbone, images: Tensor) -> None:
    geometry = backbone.geometry
    features = backbone.encode(images)
    assert (geometry.blocks, geometry.heads, geometry.width) == (3, 3, 24)
    assert tuple(feature.shape[1] for feature in features) == geometry.channels
    assert backbone.pool(features).shape == (2, geometry.pooled)
    side = images.shape[-1]
    sides = [1 if stride == 0 else side // stride for stride in geometry.strides]
    assert [feature.shape[-1] for feature in features] == sides
