"""Prompts one by one: shapes, resizing, attention against a loop, seeds."""

import pytest
import torch

from fedprompt.config import (
    Annotation,
    DataAwareOptions,
    FusionOptions,
    SparsityOptions,
    UniversalOptions,
)
from fedprompt.manifest import Scope
from fedprompt.prompts import (
    PROMPTS,
    DataAwarePrompt,
    SparsityPrompt,
    TriPromptFusion,
    UniversalPrompt,
)


def test_the_registry_knows_every_prompt_with_a_scope_and_an_injection_point() -> None:
    assert {name: (p.scope, p.injection.value) for name, p in PROMPTS.items()} == {
        "universal": (Scope.SHARED, "features"),
        "data_aware": (Scope.SITE, "features"),
        "sparsity": (Scope.CONSTANT, "features"),
        "fusion": (Scope.SHARED, "features"),
        "modulation": (Scope.SHARED, "decoder"),
        "generated": (Scope.SHARED, "features"),
        "tokens": (Scope.SHARED, "tokens"),
        "domain": (Scope.SHARED, "tokens"),
        "text": (Scope.SHARED, "text"),
        "class_prompts": (Scope.SHARED, "decoder"),
    }


def test_maps_take_any_feature_size_and_keep_constants() -> None:
    universal = UniversalPrompt(UniversalOptions(grid=8))
    torch.nn.init.constant_(universal.map, 0.7)
    for size in ((3, 11), (8, 8), (20, 4)):
        torch.testing.assert_close(universal(size), torch.full((1, *size), 0.7))
    row = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(DataAwarePrompt(DataAwareOptions(grid=8))((8, 8), row), row)


@pytest.mark.parametrize("annotation", list(Annotation))
def test_sparsity_maps_are_one_hot_by_annotation_kind(annotation: Annotation) -> None:
    maps = SparsityPrompt(SparsityOptions(), annotation)((2, 3))
    assert maps.shape == (4, 2, 3)
    assert maps.sum() == (0 if annotation is Annotation.FULL else 6)
    assert not list(SparsityPrompt(SparsityOptions(), annotation).parameters())


def test_noisy_scribbles_share_the_map_of_scribbles_and_other_kinds_do_not() -> None:
    kinds = {a: SparsityPrompt(SparsityOptions(), a).kind.argmax().item() for a in Annotation if a != "full"}
    assert kinds[Annotation.NOISY_SCRIBBLE] == kinds[Annotation.SCRIBBLE]
    assert len(set(kinds.values())) == 4


@pytest.fixture
def fusion() -> TriPromptFusion:
    module = TriPromptFusion(FusionOptions(width=16), feature_channels=6, prompt_channels=3)
    module.reset(torch.Generator().manual_seed(0))
    torch.nn.init.constant_(module.gamma_spatial, 0.8)
    torch.nn.init.constant_(module.gamma_channel, 0.6)
    return module


def test_attention_equals_a_loop_over_positions_and_channels(fusion: TriPromptFusion) -> None:
    g = torch.randn(1, 16, 3, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        query, key, value = fusion.query(g).relu()[0], fusion.key(g).relu()[0], fusion.value(g)[0]
        spatial = g[0].clone()
        for y in range(3):
            for x in range(4):
                scores = torch.stack(
                    [(query[:, y, x] * key[:, v, u]).sum() for v in range(3) for u in range(4)]
                ).softmax(0)
                mixed = sum(s * value[:, i // 4, i % 4] for i, s in enumerate(scores))
                spatial[:, y, x] += 0.8 * mixed
        flat = g[0].flatten(1)
        channel = g[0].clone()
        for c in range(16):
            energy = torch.stack([(flat[c] * flat[d]).sum() / 12 for d in range(16)])
            weights = (energy.max() - energy).softmax(0)
            channel[c] += 0.6 * sum(w * g[0, d] for d, w in enumerate(weights))
        torch.testing.assert_close(fusion._spatial_attention(g)[0], spatial, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(fusion._channel_attention(g)[0], channel, atol=1e-5, rtol=1e-4)


def test_the_residual_is_zero_at_first_and_seeds_decide_the_rest() -> None:
    def made(seed: int) -> TriPromptFusion:
        module = TriPromptFusion(FusionOptions(), feature_channels=6, prompt_channels=3)
        module.reset(torch.Generator().manual_seed(seed))
        return module

    feature, maps = torch.randn(2, 6, 5, 7), torch.randn(3, 5, 7)
    one = made(0)
    assert torch.equal(one(one.fuse(feature, maps)), torch.zeros(2, 6, 5, 7))
    assert torch.equal(one.reduce.weight, made(0).reduce.weight)
    assert not torch.equal(one.reduce.weight, made(1).reduce.weight)
