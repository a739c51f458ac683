"""Class prompts: zero at first, low rank, two branches with their scopes, light on SAM."""

from __future__ import annotations

import pytest
import torch

from fedprompt.config import ClassPromptOptions
from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint
from fedprompt.prompts.class_prompts import ClassPrompts

OPTIONS = ClassPromptOptions(count=3, grid=4, rank=2)


@pytest.fixture
def prompts() -> ClassPrompts:
    module = ClassPrompts(OPTIONS, classes=2, width=16)
    module.reset(torch.Generator().manual_seed(0))
    return module


@pytest.mark.parametrize("auxiliary", [False, True])
def test_both_branches_start_at_zero_and_get_gradients(prompts: ClassPrompts, auxiliary: bool) -> None:
    sparse, dense = prompts(auxiliary=auxiliary)
    assert sparse.shape == (2, 3, 16)
    assert dense.shape == (2, 16, 4, 4)
    assert not sparse.any()
    assert not dense.any()
    (sparse.sum() + (dense * torch.arange(16.0).view(16, 1, 1)).sum()).backward()
    start = "auxiliary_" if auxiliary else ""
    moved = {name for name, p in prompts.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {start + "sparse", start + "maps"}  # the factor of zeros moves first


def test_the_dense_embedding_is_a_sum_of_outer_products(prompts: ClassPrompts) -> None:
    maps = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    prompts.maps.data = maps
    _, dense = prompts()
    for k in range(2):
        expected = sum(torch.outer(prompts.channels[k, r], maps[k, r].flatten()) for r in range(2))
        torch.testing.assert_close(dense[k].flatten(1), expected)
        assert torch.linalg.matrix_rank(dense[k].flatten(1)) == 2
    assert not prompts(auxiliary=True)[1].any()


def test_the_auxiliary_branch_belongs_to_the_site(prompts: ClassPrompts) -> None:
    scopes = {name: prompts.scope_of(name) for name, _ in prompts.named_parameters()}
    assert {n for n, s in scopes.items() if s is Scope.SHARED} == {"sparse", "channels", "maps"}
    assert {n for n, s in scopes.items() if s is Scope.SITE} == {
        "auxiliary_sparse",
        "auxiliary_channels",
        "auxiliary_maps",
    }
    assert prompts.injection is InjectionPoint.DECODER


def test_the_seed_decides_the_directions(prompts: ClassPrompts) -> None:
    again = ClassPrompts(OPTIONS, classes=2, width=16)
    again.reset(torch.Generator().manual_seed(0))
    assert torch.equal(again.channels, prompts.channels)
    assert not torch.equal(prompts.channels, prompts.auxiliary_channels)
    again.reset(torch.Generator().manual_seed(1))
    assert not torch.equal(again.channels, prompts.channels)
    torch.nn.init.ones_(again.sparse)
    again.reset(torch.Generator().manual_seed(0))
    assert not again.sparse.any()


def test_the_default_is_light_on_sam_b() -> None:
    from transformers import SamConfig, SamModel

    with torch.device("meta"):
        backbone = sum(parameter.numel() for parameter in SamModel(SamConfig()).parameters())
        prompts = ClassPrompts(ClassPromptOptions(), classes=2, width=256)
    count = sum(parameter.numel() for parameter in prompts.parameters())
    assert count == 2 * 2 * (4 * 256 + 2 * 256 + 2 * 8 * 8)
    assert count < 0.0001 * backbone
