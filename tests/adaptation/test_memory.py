"""The ring of remembered prompts: capacity, order, who is alike, going on from arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedprompt.adaptation.memory import PromptMemory


def unit(place: int, length: int = 8) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(place), length).float()


def prompt_of(value: float) -> Tensor:
    return torch.full((3, 2), float(value))


def memory_of(count: int, capacity: int = 4, **options: float) -> PromptMemory:
    memory = PromptMemory(8, (3, 2), capacity=capacity, **options)  # type: ignore[arg-type]
    for place in range(count):
        memory.add(unit(place % 8), prompt_of(place))
    return memory


def test_an_empty_memory_recalls_nothing() -> None:
    memory = memory_of(0)
    assert len(memory) == 0
    assert memory.recall(unit(0)) is None
    assert memory.recall(torch.zeros(8)) is None  # though the unused rows are zeros too


def test_a_key_recalls_its_own_prompt() -> None:
    memory = memory_of(4)
    for place in range(4):
        assert torch.equal(memory.recall(unit(place)), prompt_of(place))  # type: ignore[arg-type]
    assert memory.recall(unit(5)) is None


def test_the_oldest_goes_first_and_the_ring_stays_as_long_as_it_is() -> None:
    memory = memory_of(6)
    assert len(memory) == 4
    assert memory.written == 6
    assert memory.recall(unit(0)) is None
    assert memory.recall(unit(1)) is None
    assert [float(memory.recall(unit(place))[0, 0]) for place in (2, 3, 4, 5)] == [2, 3, 4, 5]  # type: ignore[index]
    assert {name: array.shape for name, array in memory.arrays().items()} == {
        "keys": (4, 8),
        "prompts": (4, 3, 2),
    }


@pytest.mark.parametrize(("cosine", "found"), [(0.51, True), (0.49, False), (-0.9, False)])
def test_only_keys_above_the_similarity_count(cosine: float, found: bool) -> None:
    memory = PromptMemory(8, (3, 2), similarity=0.5)
    memory.add(unit(0), prompt_of(7))
    key = cosine * unit(0) + (1 - cosine**2) ** 0.5 * unit(1)
    assert (memory.recall(key) is not None) == found


def test_the_prompt_is_a_softmax_mean_over_the_nearest() -> None:
    memory = PromptMemory(8, (3, 2), neighbours=2, temperature=0.1)
    cosines = [0.9, 0.6, 0.8]
    for place, cosine in enumerate(cosines):
        key = cosine * unit(0) + (1 - cosine**2) ** 0.5 * unit(place + 1)
        memory.add(key, prompt_of(place))
    weights = np.exp(np.array([0.9, 0.8]) / 0.1)
    expected = (0 * weights[0] + 2 * weights[1]) / weights.sum()
    found = memory.recall(unit(0))
    assert found is not None
    torch.testing.assert_close(found, prompt_of(expected), atol=1e-5, rtol=1e-5)


def test_equal_images_stay_apart_and_share_their_say() -> None:
    memory = PromptMemory(8, (3, 2), neighbours=2)
    for value in (1.0, 3.0, 8.0):
        memory.add(unit(0), prompt_of(value))
    assert len(memory) == 3
    torch.testing.assert_close(memory.recall(unit(0)), prompt_of(2))  # the two that were written first


def test_prompts_are_copied_when_written() -> None:
    memory, prompt = memory_of(0), torch.nn.Parameter(prompt_of(1))
    memory.add(unit(0), prompt)
    prompt.data.fill_(9)
    found = memory.recall(unit(0))
    assert torch.equal(found, prompt_of(1))  # type: ignore[arg-type]
    assert not found.requires_grad  # type: ignore[union-attr]
    kept = memory.arrays()
    memory.add(unit(1), prompt)
    assert not kept["keys"][1].any()


def test_forgetting_leaves_no_trace() -> None:
    memory = memory_of(6)
    memory.clear()
    assert len(memory) == 0
    assert memory.recall(unit(3)) is None
    assert not any(array.any() for array in memory.arrays().values())


@pytest.mark.parametrize("count", [0, 3, 6])
def test_it_goes_on_from_arrays(count: int) -> None:
    memory, other = memory_of(count), memory_of(2)
    other.restore(memory.written, memory.arrays())
    for one in (memory, other):
        one.add(unit(7), prompt_of(70))
    assert other.written == memory.written
    expected = memory.arrays()
    assert all(np.array_equal(array, expected[name]) for name, array in other.arrays().items())
    for place in range(8):
        mine, theirs = other.recall(unit(place)), memory.recall(unit(place))
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)  # type: ignore[arg-type]


def test_arrays_of_another_memory_are_refused() -> None:
    kept = memory_of(2).arrays()
    with pytest.raises(ValueError, match=r"expected keys \(4, 9\), got \(4, 8\)"):
        PromptMemory(9, (3, 2), capacity=4).restore(2, kept)
    with pytest.raises(ValueError, match=r"expected prompts \(4, 3, 3\), got \(4, 3, 2\)"):
        PromptMemory(8, (3, 3), capacity=4).restore(2, kept)
    wide = {name: array.astype(np.float64) for name, array in kept.items()}
    with pytest.raises(ValueError, match="expected keys"):
        memory_of(0).restore(2, wide)
    with pytest.raises(KeyError):
        memory_of(0).restore(2, {"keys": kept["keys"]})
