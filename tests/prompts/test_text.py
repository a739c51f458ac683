"""Learnable context before class names: starts as zero-shot CLIP, one shared and one personal part."""

from __future__ import annotations

import pickle

import pytest
import torch
from tiny_transformers import tiny_clip

from fedprompt.backbones.base import freeze
from fedprompt.backbones.clip import CLIP
from fedprompt.config import TextOptions
from fedprompt.errors import ConfigurationError
from fedprompt.manifest import Scope
from fedprompt.prompts.text import TextContext, fixed_text

CLASSES = ("mole", "melanoma", "melan")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> CLIP:
    found = CLIP.from_pretrained(tiny_clip(tmp_path_factory.mktemp("clip")))
    freeze(found)
    return found


def make_prompt(backbone: CLIP, *, seed: int = 0, **options: object) -> TextContext:
    prompt = TextContext(TextOptions.model_validate(options), backbone, CLASSES)
    prompt.reset(torch.Generator().manual_seed(seed))
    return prompt


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("template", ["a photo of a {}.", "photo {}", "a {} of a mole"])
def test_the_initial_features_are_those_of_the_template(backbone: CLIP, template: str, rank: int) -> None:
    texts = [template.format(name) for name in CLASSES]
    read = backbone.tokenizer(texts, padding=True, return_tensors="pt")
    expected = backbone.encoder.get_text_features(**read).pooler_output
    assert (fixed_text(backbone, CLASSES, template) - expected).abs().max() < 1e-5
    prompt = make_prompt(backbone, template=template, rank=rank)
    assert (prompt() - expected).abs().max() < 1e-5
    assert prompt.context.shape == (len(template.partition("{}")[0].split()), 20)


def test_without_options_the_text_is_a_photo(backbone: CLIP) -> None:
    assert torch.equal(fixed_text(backbone, CLASSES), fixed_text(backbone, CLASSES, "a photo of a {}."))
    assert make_prompt(backbone).context.shape == (4, 20)


def test_the_context_stands_in_place_of_the_words(backbone: CLIP) -> None:
    """A context that holds the embeddings of other words gives the features of those words."""
    prompt = make_prompt(backbone)
    ids, _ = backbone.tokenise(["of mole photo of"])
    with torch.no_grad():
        prompt.context.copy_(backbone.embed_words(ids[0, 1:5]))
    expected = fixed_text(backbone, CLASSES, "of mole photo of {}.")
    assert (prompt() - expected).abs().max() < 1e-5
    assert (prompt() - fixed_text(backbone, CLASSES)).abs().max() > 0.1
    prompt.reset(torch.Generator())
    assert (prompt() - fixed_text(backbone, CLASSES)).abs().max() < 1e-5


def test_the_personal_part_is_a_product_added_to_the_context(backbone: CLIP) -> None:
    prompt = make_prompt(backbone, rank=2)
    with torch.no_grad():
        prompt.personal_v.normal_(generator=torch.Generator().manual_seed(1))
    plain = make_prompt(backbone)
    with torch.no_grad():
        for i in range(4):
            for j in range(20):
                products = [prompt.personal_u[i, k] * prompt.personal_v[k, j] for k in range(2)]
                plain.context[i, j] += sum(products)
    torch.testing.assert_close(prompt(), plain(), rtol=1e-4, atol=1e-5)
    assert (prompt() - fixed_text(backbone, CLASSES)).abs().max() > 0.1


def test_scopes_and_tensors(backbone: CLIP) -> None:
    prompt = make_prompt(backbone, rank=3)
    tensors = {**dict(prompt.named_parameters()), **dict(prompt.named_buffers())}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {"context": (4, 20), "personal_u": (4, 3), "personal_v": (3, 20)}
    assert prompt.scope_of("context") == Scope.SHARED
    assert prompt.scope_of("personal_u") == prompt.scope_of("personal_v") == Scope.PERSONAL
    assert {name for name, _ in make_prompt(backbone).named_parameters()} == {"context"}


def test_gradients_reach_the_context_and_first_one_factor(backbone: CLIP) -> None:
    prompt = make_prompt(backbone, rank=2)
    prompt()[:, 0].square().sum().backward()
    assert (prompt.context.grad.abs().amax(dim=1) > 0).all()
    assert prompt.personal_v.grad.abs().max() > 0
    assert torch.count_nonzero(prompt.personal_u.grad) == 0  # until V has moved
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_the_draw_is_the_generators(backbone: CLIP) -> None:
    first, same, other = (make_prompt(backbone, rank=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.personal_u, same.personal_u)
    assert not torch.equal(first.personal_u, other.personal_u)
    assert torch.equal(first.context, other.context)


def test_mixed_precision(backbone: CLIP) -> None:
    prompt = make_prompt(backbone, rank=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = prompt()
        rounded.float().square().sum().backward()
    torch.testing.assert_close(rounded.float(), prompt(), rtol=0.1, atol=0.1)
    assert prompt.context.grad.dtype == torch.float32


def test_it_travels_with_its_backbone(backbone: CLIP) -> None:
    prompt = make_prompt(backbone, rank=1)
    again, its = pickle.loads(pickle.dumps((prompt, backbone)))  # noqa: S301 - as worker processes do
    assert again._backbone[0] is its
    assert torch.equal(again(), prompt())


def test_a_template_without_words_or_a_long_class_is_refused(backbone: CLIP) -> None:
    with pytest.raises(ValueError, match=r"expected words and one \{\} behind them"):
        make_prompt(backbone, template="{} is a mole")
    with pytest.raises(ConfigurationError, match=r"'a photo of a spitznevusofthelip.': .* at most 24 tokens"):
        TextContext(TextOptions(), backbone, ("mole", "spitznevusofthelip"))
    with pytest.raises(ConfigurationError, match="at most 24 tokens of the text model, got 29"):
        make_prompt(backbone, template="a " * 25 + "{}")
