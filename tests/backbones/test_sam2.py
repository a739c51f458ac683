"""SAM 2 on single images: the library's features and, with idle prompts, the library's masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sam import SIDE, images, save_tiny_sam, save_tiny_sam2

from fedprompt.backbones.base import fingerprint, freeze
from fedprompt.backbones.sam2 import SAM2
from fedprompt.errors import ConfigurationError

ZEROS = torch.zeros(2, 4, 16), torch.zeros(2, 16, 4, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sam2(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="module")
def library(folder: Path) -> Any:
    from transformers import Sam2Model

    return Sam2Model.from_pretrained(folder).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sam2(folder: Path) -> SAM2:
    backbone = SAM2.from_pretrained(folder)
    freeze(backbone)
    return backbone


def test_features_are_the_librarys_image_embeddings(sam2: SAM2, library: Any) -> None:
    features = sam2.encode(images())
    for got, expected in zip(features, library.get_image_embeddings(images()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-5)
    shapes = [
        (2, c, SIDE // s, SIDE // s)
        for c, s in zip(sam2.geometry.channels, sam2.geometry.strides, strict=True)
    ]
    assert [tuple(feature.shape) for feature in features] == shapes


@pytest.mark.parametrize("boxes", [None, torch.tensor([[[0.0, 0, 64, 64], [3, 5, 20, 30]]]).repeat(2, 1, 1)])
def test_untrained_prompts_are_the_library_clicked_on_a_grid(
    sam2: SAM2, library: Any, boxes: torch.Tensor | None
) -> None:
    extra = (
        torch.tensor([[[[3.0, 60]], [[20, 9]]], [[[31, 7]], [[5, 5]]]]),
        torch.tensor([[[1], [0]], [[0], [1]]]),
    )
    logits = sam2.decode_masks(sam2.encode(images()), *ZEROS, points=extra, boxes=boxes)
    expected = library(
        pixel_values=images(),
        input_points=torch.cat([sam2.start_points(4).expand(2, 2, -1, -1), extra[0]], dim=2),
        input_labels=torch.cat([torch.ones(2, 2, 4, dtype=torch.long), extra[1]], dim=2),
        input_boxes=boxes,
        multimask_output=False,
    ).pred_masks[:, :, 0]
    assert logits.shape == (2, 3, *sam2.mask_size())
    assert not logits[:, 0].any()
    torch.testing.assert_close(logits[:, 1:], expected, rtol=0, atol=1e-5)


def test_each_image_keeps_its_own_fine_features(sam2: SAM2) -> None:
    learned = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1)), ZEROS[1]
    features = sam2.encode(images())
    together = sam2.decode_masks(features, *learned)
    for image in range(2):
        alone = sam2.decode_masks(tuple(feature[image : image + 1] for feature in features), *learned)
        torch.testing.assert_close(together[image : image + 1], alone, rtol=1e-4, atol=2e-5)
    swapped = sam2.decode_masks((features[0].flip(0), *features[1:]), *learned)
    assert not torch.allclose(swapped[:, 1:], together[:, 1:], atol=1e-3)


def test_gradients_reach_class_prompts_and_features_only(sam2: SAM2) -> None:
    learned = [tensor.clone().requires_grad_() for tensor in ZEROS]
    *fine, deep = sam2.encode(images())
    deep.requires_grad_()
    sam2.decode_masks((*fine, deep), *learned).square().mean().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in (*learned, deep))
    assert all(parameter.grad is None for parameter in sam2.parameters())


def test_the_image_part_of_a_video_model_is_read(tmp_path: Path) -> None:
    from transformers import Sam2VideoModel

    folder = save_tiny_sam2(tmp_path, seed=3, video=True)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "sam2_video"
    video = Sam2VideoModel.from_pretrained(folder).eval()
    weight = SAM2.from_pretrained(folder).encoder.vision_encoder.neck.convs[0].weight
    assert torch.equal(weight, video.vision_encoder.neck.convs[0].weight)


def test_it_takes_no_tokens_and_one_size(sam2: SAM2) -> None:
    assert sam2.geometry.blocks == 0
    with pytest.raises(NotImplementedError, match="sam2"):
        sam2.encode(images(), stop=0)
    with pytest.raises(ConfigurationError, match=r"image\.size: backbone sam2 expected 64, .* got 512"):
        sam2.check_size(512)


def test_a_saved_encoder_is_rebuilt(sam2: SAM2, tmp_path: Path) -> None:
    sam2.save_encoder(tmp_path)
    assert fingerprint(SAM2.rebuild(sam2.config(), tmp_path)) == fingerprint(sam2)


def test_a_folder_of_the_first_sam_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected an encoder of type sam2 or sam2_video, got sam"):
        SAM2.from_pretrained(save_tiny_sam(tmp_path))
