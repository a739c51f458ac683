"""Panels: four tiles, what is drawn where, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedprompt.report.pictures import GAP, TILE, class_colours, mask_panel, write_picture

CLASSES = ("background", "rim", "cup")


def panel(path: Path, image: np.ndarray, *maps: np.ndarray) -> list[np.ndarray]:
    """The four tiles as (H, W, 3) in 0 to 255."""
    write_picture(path, image, *maps, CLASSES)
    pixels = np.asarray(Image.open(path)).astype(int)
    width = (pixels.shape[1] - 3 * GAP) // 4
    assert pixels.shape[1] == 4 * width + 3 * GAP
    assert not pixels[:, width : width + GAP, 3].any(), "transparent between tiles"
    return [pixels[:, n * (width + GAP) : n * (width + GAP) + width, :3] for n in range(4)]


def square(side: int, number: int) -> np.ndarray:
    labels = np.zeros((side, side), np.uint8)
    labels[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = number
    return labels


def test_areas_are_tinted_outlined_and_where_they_belong(tmp_path: Path) -> None:
    image = np.full((128, 128, 3), 0.5)
    sparse = np.full((128, 128), 255, np.uint8)
    sparse[60:64, 20:100] = 2
    plain, annotation, prediction, truth = panel(
        tmp_path / "p.png", image, sparse, square(128, 1), square(128, 2)
    )
    grey = plain[0, 0]
    assert (plain == grey).all()
    colours = {name: np.array(list(bytes.fromhex(c[1:]))) for name, c in class_colours(CLASSES).items()}
    centre, corner, edge = (TILE // 2, TILE // 2), (2, 2), (TILE // 2, TILE // 4 + 1)
    for tile, name in ((prediction, "rim"), (truth, "cup")):
        assert (tile[corner] == grey).all()
        assert np.abs(tile[edge] - colours[name]).max() <= 2, "the contour has the full colour"
        assert np.abs(tile[centre] - (0.65 * grey + 0.35 * colours[name])).max() <= 2
    assert (annotation[corner] < grey / 2).all(), "what is not labelled is dark"
    assert np.abs(annotation[123, TILE // 2] - colours["cup"]).max() < 20


def test_a_thin_stroke_stays_visible_when_the_picture_shrinks(tmp_path: Path) -> None:
    sparse = np.full((1024, 1024), 255, np.uint8)
    sparse[500, 100:900] = 1
    tiles = panel(tmp_path / "p.png", np.zeros((1024, 1024, 3)), sparse, square(64, 0), square(64, 0))
    assert tiles[1][500 // 4, 128].max() > 100


def test_equal_arguments_give_equal_bytes_and_shapes_may_differ(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((90, 200, 3))
    for name in ("a", "b"):
        write_picture(tmp_path / name, image, square(64, 1), square(90, 2), square(300, 1), CLASSES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with Image.open(tmp_path / "a") as picture:
        assert picture.size == (4 * TILE + 3 * GAP, round(90 * TILE / 200))


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image: expected \(H, W, 3\), got \(8, 8\)"):
        write_picture(tmp_path / "p", np.zeros((8, 8)), *[square(8, 1)] * 3, CLASSES)
    with pytest.raises(ValueError, match="truth: expected"):
        write_picture(
            tmp_path / "p", np.zeros((8, 8, 3)), square(8, 1), square(8, 1), np.zeros((1, 8, 8)), CLASSES
        )
    assert not (tmp_path / "p").exists()


def test_colours_differ_and_never_run_out() -> None:
    colours = class_colours([f"class-{n}" for n in range(20)])
    assert len(colours) == 20
    assert len(set(list(colours.values())[:9])) == 9


def test_a_mask_panel_has_the_image_first_and_then_one_tile_per_mask() -> None:
    image = np.full((40, 20, 3), 0.5, np.float32)
    mask = np.zeros((40, 20), np.uint8)
    mask[10:30, 5:15] = 1
    panel = np.asarray(mask_panel(image, [np.zeros_like(mask), mask], ("background", "disc")))
    width = TILE // 2
    assert panel.shape == (TILE, 3 * width + 2 * GAP, 4)
    tiles = [panel[:, n * (width + GAP) : n * (width + GAP) + width, :3] for n in range(3)]
    assert np.array_equal(tiles[0], tiles[1])
    assert (tiles[0] == tiles[0][0, 0]).all()
    centre, corner = tiles[2][TILE // 2, width // 2], tiles[2][2, 2]
    assert np.array_equal(corner, tiles[0][2, 2])
    assert not np.array_equal(centre, corner)
    assert not panel[:, width : width + GAP, 3].any()  # transparent between them
