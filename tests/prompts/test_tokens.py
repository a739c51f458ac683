"""Visual tokens and domain prompts: which blocks they reach, what is personal, how domains mix."""

from __future__ import annotations

import pytest
import torch

from fedprompt.backbones.base import Geometry
from fedprompt.config import DomainOptions, TokenOptions
from fedprompt.errors import ConfigurationError
from fedprompt.manifest import Scope
from fedprompt.prompts import DomainPrompt, VisualTokens
from fedprompt.prompts.domain import style

GEOMETRY = Geometry(channels=(8,), strides=(16,), pooled=8, blocks=6, width=8, heads=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("blocks", "first"), [(1, 5), (4, 2), (6, 0)])
def test_deep_tokens_enter_the_last_blocks(blocks: int, first: int) -> None:
    prompt = VisualTokens(TokenOptions(count=3, blocks=blocks), GEOMETRY)
    prompt.reset(seeded())
    tokens = prompt()
    assert prompt.start == first
    assert list(tokens.enter) == list(tokens.gates) == list(range(first, 6))
    assert all(entering.shape == (3, 8) for entering in tokens.enter.values())
    assert all(torch.equal(gate, torch.zeros(2)) for gate in tokens.gates.values())


def test_more_blocks_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected at most the 6 of the backbone, got 7"):
        VisualTokens(TokenOptions(blocks=7), GEOMETRY)


def test_shallow_tokens_enter_once_and_are_seen_by_all_later_blocks() -> None:
    tokens = VisualTokens(TokenOptions(count=3, depth="shallow", blocks=4), GEOMETRY)()
    assert list(tokens.enter) == [2]
    assert list(tokens.gates) == [2, 3, 4, 5]


@pytest.fixture
def domain() -> DomainPrompt:
    prompt = DomainPrompt(DomainOptions(count=3, blocks=2, domains=4, adapter=5), GEOMETRY)
    prompt.reset(seeded())
    return prompt


def test_tokens_of_a_mixture_are_the_mixture_of_the_tokens(domain: DomainPrompt) -> None:
    weights = torch.rand(5, 4, generator=seeded(1))
    weights = weights / weights.sum(dim=1, keepdim=True)
    with torch.no_grad():
        for level, entering in domain(weights).enter.items():
            assert entering.shape == (5, 3, 8)
            for image in range(5):
                expected = sum(
                    weights[image, k] * domain.base[level - 4] * torch.outer(domain.u[k], domain.v[k])
                    for k in range(4)
                )
                torch.testing.assert_close(entering[image], expected)


def test_every_domain_starts_near_the_base_tokens(domain: DomainPrompt) -> None:
    with torch.no_grad():
        entering = domain(torch.eye(4)).enter[4]
        relative = (entering - domain.base[0]).norm() / domain.base[0].norm()
    assert 0 < relative < 0.2 * 2


def test_factors_and_adapter_are_personal_and_the_rest_is_shared(domain: DomainPrompt) -> None:
    scopes = {name: domain.scope_of(name) for name, _ in domain.named_parameters()}
    assert {name for name, scope in scopes.items() if scope is Scope.SHARED} == {"base", "gates"}
    personal = {name for name, scope in scopes.items() if scope is Scope.PERSONAL}
    assert personal == {"u", "v", "adapter.0.weight", "adapter.0.bias", "adapter.2.weight", "adapter.2.bias"}


def test_an_untrained_adapter_mixes_all_domains_evenly_and_a_trained_one_by_style(
    domain: DomainPrompt,
) -> None:
    state = torch.randn(6, 10, 8, generator=seeded(2))
    with torch.no_grad():
        assert torch.equal(domain.mix(style((state,))), torch.zeros(6, 4))
        torch.nn.init.normal_(domain.adapter[2].weight, generator=seeded(3))
        told = domain.mix(style((state,)))
        brighter = domain.mix(style((state * 3 + torch.linspace(-5, 5, 8),)))
    assert told.shape == (6, 4)
    assert not torch.allclose(told, brighter)


def test_style_is_mean_and_deviation_over_positions_of_any_layout() -> None:
    grid = torch.randn(2, 3, 4, 8, generator=seeded(4))
    flat = grid.reshape(2, 12, 8)
    expected = torch.cat([flat.mean(dim=1), flat.std(dim=1)], dim=1)
    torch.testing.assert_close(style((grid,)), expected)
    torch.testing.assert_close(style((flat.half(),)), style((flat.half().float(),)))
