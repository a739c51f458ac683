"""CLIP against the library's own: images, texts, logits; and its tokenizer."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_transformers import tiny_clip, tiny_tokenizer
from torch import Tensor

from fedprompt.backbones.base import fingerprint, freeze
from fedprompt.backbones.clip import CLIP
from fedprompt.errors import ConfigurationError, DataError

TEXTS = ["a photo of a mole.", "melanoma", "a photo of a photo of a nevus"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> CLIP:
    found = CLIP.from_pretrained(folder)
    freeze(found)
    return found


@pytest.fixture(scope="module")
def library(folder: Path) -> Any:
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder).eval().requires_grad_(False)


def draw(batch: int, height: int, width: int) -> Tensor:
    return torch.randn((batch, 3, height, width), generator=torch.Generator().manual_seed(6))


def text_features(backbone: CLIP, texts: list[str]) -> Tensor:
    ids, ends = backbone.tokenise(texts)
    return backbone.text_features(backbone.embed_words(ids), ends)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (40, 24)])
def test_images_are_the_librarys(backbone: CLIP, library: Any, height: int, width: int) -> None:
    images = draw(2, height, width)
    features = backbone.encode(images)
    expected = library.vision_model(images, interpolate_pos_encoding=True).pooler_output
    assert [tuple(feature.shape) for feature in features] == [(2, 24, 1, 1)]
    assert (features[0].flatten(1) - expected).abs().max() < 1e-5
    expected = library.get_image_features(images, interpolate_pos_encoding=True).pooler_output
    assert (backbone.pool(features) - expected).abs().max() < 1e-5
    assert backbone.geometry.pooled == expected.shape[1] == 16


def make_legacy(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("legacy", [False, True])
def test_texts_are_the_librarys(tmp_path: Path, legacy: bool) -> None:
    """`legacy`: as in folders where eos_token_id is 2 and the library takes the highest id for the end."""
    from transformers import AutoTokenizer, CLIPModel

    folder = tiny_clip(tmp_path)
    if legacy:
        make_legacy(folder)
    read = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    library = CLIPModel.from_pretrained(folder).eval()
    assert library.text_model.eos_token_id == (2 if legacy else len(tiny_tokenizer()) - 1)
    with torch.no_grad():
        expected = library.get_text_features(**read).pooler_output
    found = text_features(CLIP.from_pretrained(folder), TEXTS)
    assert found.shape == (3, 16)
    assert (found - expected).abs().max() < 1e-5
    assert (found[0] - found[1]).abs().max() > 0.1


def test_a_text_does_not_depend_on_the_others_or_on_what_follows(backbone: CLIP) -> None:
    together = text_features(backbone, TEXTS)
    alone = torch.cat([text_features(backbone, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_logits_are_the_librarys(backbone: CLIP, library: Any) -> None:
    images = draw(3, 32, 32)
    ids, _ = backbone.tokenise(TEXTS)
    expected = library(input_ids=ids, pixel_values=images).logits_per_image
    pooled = backbone.pool(backbone.encode(images))
    found = backbone.logits(pooled, text_features(backbone, TEXTS))
    assert found.shape == (3, 3)
    assert (found - expected).abs().max() < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(backbone.logits(pooled, text_features(backbone, TEXTS)).argmax(1), found.argmax(1))
        assert backbone.logits(pooled, text_features(backbone, TEXTS)).dtype == torch.float32


def test_gradients_pass_the_frozen_text_tower(backbone: CLIP) -> None:
    ids, ends = backbone.tokenise(TEXTS)
    words = backbone.embed_words(ids).requires_grad_()
    backbone.text_features(words, ends)[:, 0].sum().backward()
    for row, end in zip(words.grad, ends, strict=True):
        assert (row[: end + 1].abs().amax(dim=1) > 0).all()
        assert torch.count_nonzero(row[end + 1 :]) == 0


def test_tokens_are_padded_on_the_right_and_end_where_the_text_does(backbone: CLIP) -> None:
    ids, ends = backbone.tokenise(["mole", "a photo of a mole"])
    assert ends.tolist() == [2, 6]
    assert ids[0, 2] == ids[1, 6] == len(tiny_tokenizer()) - 1
    assert ids[0, 1] == ids[1, 5]


def test_a_text_beyond_the_positions_is_refused(backbone: CLIP) -> None:
    backbone.tokenise(["a " * 22])
    with pytest.raises(ConfigurationError, match="expected at most 24 tokens of the text model, got 25"):
        backbone.tokenise(["mole", "a " * 23])


def test_a_written_folder_is_self_contained(backbone: CLIP, tmp_path: Path) -> None:
    backbone.save_encoder(tmp_path)
    again = CLIP.rebuild(json.loads(json.dumps(backbone.config())), tmp_path)
    assert fingerprint(again) == fingerprint(backbone)
    assert again.preprocessing == backbone.preprocessing
    assert torch.equal(text_features(again, TEXTS), text_features(backbone, TEXTS))


def test_it_travels_between_processes(backbone: CLIP) -> None:
    again = pickle.loads(pickle.dumps(backbone))  # noqa: S301 - as engines with worker processes do
    assert fingerprint(again) == fingerprint(backbone)
    assert torch.equal(text_features(again, TEXTS), text_features(backbone, TEXTS))


def test_the_fingerprint_and_a_written_folder_know_their_vocabulary(backbone: CLIP, tmp_path: Path) -> None:
    tiny_clip(tmp_path)
    words = ("a", "photo", "of", "mole", "melanomu")  # as many tokens, one of them another
    tiny_tokenizer(words).save_pretrained(tmp_path)
    other = CLIP.from_pretrained(tmp_path)
    assert fingerprint(other) != fingerprint(backbone)
    with pytest.raises(DataError, match="expected the tokenizer that this folder was written with"):
        CLIP.rebuild(backbone.config(), tmp_path)


def test_a_missing_foreign_or_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path)
    tiny_tokenizer((*"xyz", "photograph")).save_pretrained(folder)
    with pytest.raises(DataError, match="got none or another"):
        CLIP.from_pretrained(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="expected a CLIP tokenizer, got"):
        CLIP.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="got none or another"):
        CLIP.from_pretrained(folder)
    make_legacy(folder)
    with pytest.raises(DataError, match="got none or another"):
        CLIP.from_pretrained(folder)


def test_there_is_no_decoder(folder: Path, backbone: CLIP) -> None:
    with pytest.raises(ConfigurationError, match="expected a task without masks"):
        CLIP.from_pretrained(folder, classes=2)
    assert backbone.geometry.decoder_channels == ()
    with pytest.raises(NotImplementedError):
        backbone.decode(backbone.encode(draw(1, 32, 32)))
