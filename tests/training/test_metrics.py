"""Metrics against MONAI and hand-made masks, and the rule for empty ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import DiceHelper

from fedprompt.training.metrics import dice_per_class, mean_metrics, segmentation_metrics

masks = arrays(np.uint8, (6, 7), elements=st.integers(0, 2))


@settings(deadline=None)
@given(masks, masks)
def test_dice_equals_monai_where_the_class_exists(prediction: np.ndarray, truth: np.ndarray) -> None:
    ours = dice_per_class(prediction, truth, 3)
    pair = [torch.from_numpy(m.astype(np.int64))[None, None] for m in (prediction, truth)]
    theirs, _ = DiceHelper(num_classes=3, include_background=False, softmax=False, ignore_empty=False)(*pair)
    np.testing.assert_allclose(ours, np.atleast_1d(theirs.squeeze().numpy()), atol=1e-6)


def square(top: int, left: int, side: int = 4) -> np.ndarray:
    mask = np.zeros((20, 20), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def test_distances_follow_the_pixel_spacing() -> None:
    rows = segmentation_metrics(square(4, 4), square(8, 4), ("background", "lesion"), (0.5, 2.0))
    columns = segmentation_metrics(square(4, 4), square(4, 8), ("background", "lesion"), (0.5, 2.0))
    assert rows["hd95"] == pytest.approx(4 * 0.5)
    assert columns["hd95"] == pytest.approx(4 * 2.0)
    assert 0 < rows["assd"] < rows["hd95"]


def test_empty_masks_follow_the_stated_rule() -> None:
    empty, full = np.zeros((3, 4), np.uint8), np.ones((3, 4), np.uint8)
    names = ("background", "lesion")
    assert segmentation_metrics(empty, empty, names, (1, 1)) == {"dice": 1.0, "hd95": 0.0, "assd": 0.0}
    for pair in ((empty, full), (full, empty)):
        missed = segmentation_metrics(*pair, names, (3.0, 3.0))
        assert missed == {"dice": 0.0, "hd95": 15.0, "assd": 15.0}


def test_unlabelled_pixels_do_not_count() -> None:
    truth = square(4, 4)
    truth[0] = 255
    prediction = square(4, 4)
    prediction[0] = 1
    metrics = segmentation_metrics(prediction, truth, ("background", "lesion"), (1, 1))
    assert metrics == {"dice": 1.0, "hd95": 0.0, "assd": 0.0}


def test_several_classes_are_reported_by_name_and_as_their_mean() -> None:
    truth = square(2, 2, 8)
    truth[4:7, 4:7] = 2
    metrics = segmentation_metrics(np.minimum(truth, 1), truth, ("background", "rim", "cup"), (1, 1))
    assert metrics["dice_cup"] == 0
    assert 0.8 < metrics["dice_rim"] < 1
    assert metrics["dice"] == pytest.approx(metrics["dice_rim"] / 2)


def test_mean_over_no_cases_is_empty() -> None:
    assert mean_metrics([]) == {}
    assert mean_metrics([{"dice": 0.0}, {"dice": 1.0}]) == {"dice": 0.5}
