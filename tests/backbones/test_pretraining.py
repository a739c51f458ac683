"""The recipe: it learns, it repeats itself to the byte, and it refuses what cannot work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import IMAGE, TINY

from fedprompt.backbones import fingerprint, load_backbone, load_folder, pretraining, save_backbone
from fedprompt.backbones.material import FolderMaterial, Scene, ShapeMaterial, augment
from fedprompt.backbones.pretraining import evaluate, pretrain, segmentation_loss
from fedprompt.backbones.recipes import Recipe, recipe_for
from fedprompt.config import BackboneSettings
from fedprompt.errors import ConfigurationError, DataError
from fedprompt.families import FAMILIES

FROZEN_ENCODERS = [
    name for name, entry in FAMILIES.items() if {"transformers", "pretrain"} <= set(entry.origins)
]
SHORT = Recipe(size=64, steps=20, batch_size=4, learning_rate=4e-3, views=2, choices=2, seed=3)


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """Ten bright disks on dark ground in two classes, three of them for testing."""
    folder = tmp_path / "disks"
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    lines = ["image,mask,split,patient"]
    for number in range(10):
        centre, radius = rng.uniform(25, 55, 2), rng.uniform(10, 20)
        inside = np.hypot(*(np.indices((80, 90)) - centre[:, None, None])) < radius
        image = np.where(inside[..., None], (200, 120, 90), (40, 60, 50)) + rng.integers(0, 20, (80, 90, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"images/{number}.png")
        Image.fromarray(inside.astype(np.uint8)).save(folder / f"masks/{number}.png")
        lines.append(f"images/{number}.png,masks/{number}.png,{'test' if number > 6 else 'train'},")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_a_short_run_on_shapes_lowers_the_loss_and_repeats_to_the_byte(tmp_path: Path) -> None:
    runs = [
        pretrain(
            "embedded-unet", tmp_path / name, SHORT, classes=("background", "outer", "inner"), device="cpu"
        )
        for name in ("one", "two")
    ]
    assert runs[0]["loss"]["last"] < runs[0]["loss"]["first"]
    assert runs[0] == runs[1]
    for file in ("weights.safetensors", "backbone.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("name", FROZEN_ENCODERS)
def test_the_decoder_is_trained_on_a_folder_and_the_encoder_is_not(
    name: str, tmp_path: Path, disks: Path
) -> None:
    seen: list[str] = []

    def watch(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        seen.append(what.split(",")[0])

    (tmp_path / "source").mkdir()
    untouched = TINY[name](tmp_path / "source", 2)
    provenance = pretrain(
        name,
        tmp_path / "out",
        replace(SHORT, size=2 * IMAGE[name]),
        classes=("background", "disk"),
        data=disks,
        encoder=tmp_path / "source",
        device="cpu",
        progress=watch,
    )
    backbone = load_backbone(
        BackboneSettings(name=name, folder=tmp_path / "out"), task="segmentation", classes=2
    )
    for mine, theirs in zip(backbone.encoder.parameters(), untouched.encoder.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert provenance["loss"]["last"] < provenance["loss"]["first"]
    assert provenance["data"] == {"name": "disks", "train": 6, "validation": 1, "test": 3}
    assert provenance["encoder"] == "source"
    assert 0 <= provenance["test"]["dice_disk"] <= 1
    assert list(dict.fromkeys(seen)) == ["reading cases", "encoding augmented views", "training", "testing"]
    assert str(tmp_path) not in (tmp_path / "out" / "backbone.json").read_text()


def test_a_fetched_folder_gives_the_same_encoder_as_its_source(
    tmp_path: Path, disks: Path, encoder_folder: Path
) -> None:
    save_backbone(load_folder(encoder_folder), tmp_path / "fetched", {})
    for source, out in ((encoder_folder, "one"), (tmp_path / "fetched", "two")):
        pretrain(
            "mobilenet-v2",
            tmp_path / out,
            replace(SHORT, steps=2),
            classes=("background", "disk"),
            data=disks,
            encoder=source,
            device="cpu",
        )
    assert fingerprint(load_folder(tmp_path / "one")) == fingerprint(load_folder(tmp_path / "two"))


def test_where_features_take_too_much_every_step_encodes_new_views(
    tmp_path: Path, disks: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(out: str) -> list[str]:
        seen: list[str] = []
        options = {"classes": ("background", "disk"), "data": disks, "encoder": encoder_folder}
        pretrain(
            "mobilenet-v2",
            tmp_path / out,
            replace(SHORT, steps=4),
            **options,
            device="cpu",
            progress=lambda what, *_: seen.append(what.split(",")[0]),
        )
        return list(dict.fromkeys(seen))

    material = FolderMaterial(disks, 2, SHORT.size, SHORT.validation, SHORT.seed)
    features = load_folder(encoder_folder)  # not what the decoder reads, but what tells the limit apart
    backbone = type(features).from_pretrained(encoder_folder, 2)
    one = backbone.encode(torch.zeros(1, 3, SHORT.size, SHORT.size))
    needed = 2 * sum(feature.numel() for feature in one) * SHORT.views * material.cases
    monkeypatch.setattr(pretraining, "_KEPT", needed)
    assert run("kept") == ["reading cases", "encoding augmented views", "training", "testing"]
    monkeypatch.setattr(pretraining, "_KEPT", needed - 1)
    assert run("fresh") == ["reading cases", "training", "testing"]
    assert run("again") == ["reading cases", "training", "testing"]
    marks = [fingerprint(load_folder(tmp_path / name)) for name in ("kept", "fresh", "again")]
    assert marks[0] != marks[1] == marks[2]


@pytest.mark.parametrize("name", ["monai-unet", "swin-unetr"])
def test_a_network_of_monai_is_trained_whole(name: str, tmp_path: Path, disks: Path) -> None:
    recipe = recipe_for(name, size=32, steps=3, batch_size=2)
    provenance = pretrain(
        name, tmp_path / "out", recipe, classes=("background", "disk"), data=disks, device="cpu"
    )
    assert provenance["recipe"]["bfloat16"]
    trained = load_folder(tmp_path / "out")
    fresh = pretraining._untrained(name, 2, None, recipe.seed)
    moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True)]
    assert sum(moved) / len(moved) > 0.9


@pytest.mark.slow
def test_the_embedded_network_learns_a_folder(tmp_path: Path, disks: Path) -> None:
    recipe = Recipe(size=64, steps=40, batch_size=6, learning_rate=4e-3, choices=4)
    provenance = pretrain(
        "embedded-unet", tmp_path / "out", recipe, classes=("background", "disk"), data=disks, device="cpu"
    )
    assert provenance["test"]["dice"] > 0.7
    assert load_folder(tmp_path / "out").classes == 2
    assert json.loads((tmp_path / "out" / "backbone.json").read_text())["provenance"] == provenance


def test_what_cannot_work_is_refused_before_training(
    tmp_path: Path, disks: Path, encoder_folder: Path
) -> None:
    names, odd = ("background", "disk"), replace(SHORT, size=80)
    with pytest.raises(ConfigurationError, match="expected an encoder"):
        pretrain("mobilenet-v2", tmp_path / "out", SHORT, classes=names, data=disks)
    with pytest.raises(ConfigurationError, match="expected no encoder"):
        pretrain("embedded-unet", tmp_path / "out", SHORT, classes=names, data=disks, encoder=encoder_folder)
    with pytest.raises(ConfigurationError, match="expected three classes"):
        pretrain("embedded-unet", tmp_path / "out", SHORT, classes=names)
    with pytest.raises(ConfigurationError, match="expected an encoder of type vit, got mobilenet_v2"):
        pretrain("vit", tmp_path / "out", SHORT, classes=names, data=disks, encoder=encoder_folder)
    with pytest.raises(ConfigurationError, match="sam: has no decoder to train; expected one of embedded"):
        pretrain("sam", tmp_path / "out", SHORT, classes=names, data=disks, encoder=encoder_folder)
    with pytest.raises(ConfigurationError, match="mobilenet-v2 expected a multiple of 32, got 80"):
        pretrain("mobilenet-v2", tmp_path / "out", odd, classes=names, data=disks, encoder=encoder_folder)
    with pytest.raises(ConfigurationError, match="nowhere: expected a folder or the hub id"):
        pretrain("vit", tmp_path / "out", SHORT, classes=names, data=disks, encoder="nowhere")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "backbone.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="holds a backbone already"):
        pretrain("embedded-unet", tmp_path / "taken", SHORT, classes=names, data=disks)
    (disks / "masks/2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2\.png"):
        pretrain("embedded-unet", tmp_path / "out", SHORT, classes=names, data=disks)
    assert not (tmp_path / "out").exists()


def test_a_mask_of_another_size_is_refused(disks: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(disks / "masks/1.png")
    with pytest.raises(DataError, match=r"1\.png: expected the size \(80, 90\)"):
        FolderMaterial(disks, 2, 64, 0.1, 0)


def test_default_recipes_give_way_to_what_is_named() -> None:
    recipe = recipe_for("embedded-unet", steps=7, size=None)
    assert recipe.steps == 7
    assert recipe.size == recipe_for("embedded-unet").size


def test_every_family_with_a_decoder_has_a_recipe_and_no_other_does() -> None:
    for name, entry in FAMILIES.items():
        if "pretrain" in entry.origins:
            assert recipe_for(name).size % 32 == 0
        else:
            with pytest.raises(ConfigurationError, match=f"{name}: has no decoder to train"):
                recipe_for(name)
    assert all(recipe_for(name).size % 14 == 0 for name in FROZEN_ENCODERS)
    with pytest.raises(ConfigurationError, match="'alexnet': expected one of"):
        recipe_for("alexnet")


def test_the_loss_is_cross_entropy_plus_soft_dice_over_labelled_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 3, 5, 4), generator=generator)
    masks = torch.randint(0, 3, (2, 5, 4), generator=generator)
    masks[0, :2] = 255
    entropy, overlap, total, pixels = 0.0, np.zeros(3), np.zeros(3), 0
    for b, r, c in np.ndindex(2, 5, 4):
        truth = int(masks[b, r, c])
        if truth == 255:
            continue
        p = torch.softmax(logits[b, :, r, c], 0).double().numpy()
        entropy -= np.log(p[truth])
        pixels += 1
        overlap[truth] += p[truth]
        total += p
        total[truth] += 1
    dice = np.mean(1 - (2 * overlap[1:] + 1) / (total[1:] + 1))
    assert float(segmentation_loss(logits, masks)) == pytest.approx(entropy / pixels + dice, rel=1e-5)


def test_augmentation_moves_mask_and_image_together() -> None:
    images = torch.zeros(8, 3, 64, 64)
    masks = torch.zeros(8, 64, 64, dtype=torch.long)
    images[:, :, 20:34, 28:50], masks[:, 20:34, 28:50] = 0.8, 1
    moved, labels = augment(images, masks, np.random.default_rng(0))
    assert set(labels.unique().tolist()) == {0, 1, 255}
    for image, mask in zip(moved, labels, strict=True):
        bright = image.mean(0) > 0.4
        inside = mask == 1
        assert (bright & inside).sum() * 2 / (bright[mask != 255].sum() + inside.sum()) > 0.93
    again = augment(images, masks, np.random.default_rng(0))
    assert torch.equal(again[0], moved)
    assert torch.equal(again[1], labels)


def test_evaluation_is_in_the_resolution_of_the_truth(unet: torch.nn.Module) -> None:
    scenes = ShapeMaterial(32, 0, evaluated=3).validation
    big = [Scene(s.image, np.kron(s.truth, np.ones((3, 3), np.uint8))) for s in scenes]
    dice = evaluate(unet, big, batch_size=2)
    expected = []
    for scene in big:
        logits = unet(unet.preprocess(scene.image[None]))
        full = torch.nn.functional.interpolate(logits, size=(96, 96), mode="bilinear", align_corners=False)
        guess = full[0].argmax(0).numpy()
        row = []
        for c in (1, 2):
            both = (guess == c).sum() + (scene.truth == c).sum()
            row.append(2 * ((guess == c) & (scene.truth == c)).sum() / both if both else 1.0)
        expected.append(row)
    np.testing.assert_allclose(dice, np.mean(expected, axis=0), rtol=1e-6)


def test_validation_and_test_shapes_differ() -> None:
    material = ShapeMaterial(32, 0, evaluated=2)
    assert not torch.equal(material.validation[0].image, material.test()[0].image)
