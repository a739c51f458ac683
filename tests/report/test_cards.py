"""Cards of classified cases: which are chosen, what the tables say, the same bytes every time."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedprompt.report.cards import SIDE, write_case_cards

CLASSES = ("mel", "nv", "bkl")


def case_ids(count: int) -> list[str]:
    return [f"images/{index:03}.png" for index in range(count)]


def grey(index: int) -> np.ndarray:
    return np.full((16, 16, 3), index / 100, np.float32)


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(3), count), rng.integers(0, 3, count)


def read(folder: Path, name: str) -> list[dict[str, object]]:
    content: list[dict[str, object]] = json.loads((folder / name).read_text())
    return content


def test_the_table_and_the_matrix_count_what_is_there(tmp_path: Path) -> None:
    probabilities, labels = drawn(200)
    write_case_cards(tmp_path, case_ids(200), probabilities, labels, CLASSES, grey)
    rows = list(csv.DictReader((tmp_path / "cases.csv").open()))
    assert list(rows[0]) == ["case", "truth", "prediction", "p_mel", "p_nv", "p_bkl"]
    assert len(rows) == 200
    assert rows[7]["case"] == "images/007.png"
    assert float(rows[7]["p_nv"]) == pytest.approx(probabilities[7, 1], abs=1e-6)
    confusion = json.loads((tmp_path / "confusion.json").read_text())
    assert confusion["classes"] == list(CLASSES)
    for row, truth in enumerate(CLASSES):
        for column, prediction in enumerate(CLASSES):
            same = [r for r in rows if r["truth"] == truth and r["prediction"] == prediction]
            assert confusion["counts"][row][column] == len(same)
    assert rows[7]["truth"] == CLASSES[labels[7]]
    assert rows[7]["prediction"] == CLASSES[int(np.argmax(probabilities[7]))]


def test_the_reliability_gives_the_calibration_error(tmp_path: Path) -> None:
    probabilities, labels = drawn(300, seed=1)
    probabilities[:5] = (1.0, 0.0, 0.0)
    probabilities[5:9] = (0.6, 0.4, 0.0)  # on the edge of two bins
    write_case_cards(tmp_path, case_ids(300), probabilities, labels, CLASSES, grey)
    bins = json.loads((tmp_path / "confusion.json").read_text())["reliability"]
    assert sum(entry["cases"] for entry in bins) == 300
    assert [entry["confidence"] for entry in bins] == sorted(entry["confidence"] for entry in bins)
    gaps = [entry["cases"] / 300 * abs(entry["confidence"] - entry["accuracy"]) for entry in bins]
    assert sum(gaps) == pytest.approx(calibration_error(probabilities, labels))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Slowly: 15 bins, open below and closed above, each gap weighted by its cases (Guo et al., 2017)."""
    error = 0.0
    for number in range(15):
        confidences, hits = [], []
        for row, label in zip(probabilities, labels, strict=True):
            if number / 15 < max(row) <= (number + 1) / 15:
                confidences.append(max(row))
                hits.append(float(np.argmax(row) == label))
        if hits:
            error += len(hits) / len(labels) * abs(float(np.mean(confidences)) - float(np.mean(hits)))
    return error


def sure(confidences: list[float], right: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Cases of two classes that the model takes for the second one."""
    second = np.array(confidences, np.float32)
    return np.stack([1 - second, second], axis=1), np.array(right, int)


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ([True, False] * 5, [1, 3, 5, 0, 2, 4]),
        ([True] * 10, [0, 1, 2, 3, 4, 5]),
        ([False] * 9 + [True], [0, 1, 2, 3, 4, 9]),
        ([False] * 10, [0, 1, 2, 3, 4, 5]),
        ([False, True], [0, 1]),
    ],
)
def test_the_surest_mistakes_come_first_then_the_surest_hits(
    tmp_path: Path, right: list[bool], expected: list[int]
) -> None:
    confidences = [0.95 - 0.04 * index for index in range(len(right))]
    asked: list[int] = []

    def image(index: int) -> np.ndarray:
        asked.append(index)
        return grey(index)

    write_case_cards(tmp_path, case_ids(len(right)), *sure(confidences, right), ["no", "yes"], image)
    listed = read(tmp_path, "pictures.json")
    assert [entry["case"] for entry in listed] == [f"images/{index:03}.png" for index in expected]
    assert asked == expected, "no other image is read"
    for entry, index in zip(listed, expected, strict=True):
        assert entry["prediction"] == "yes"
        assert entry["truth"] == ("yes" if right[index] else "no")
        assert entry["probability"] == pytest.approx(confidences[index])
        with Image.open(tmp_path / str(entry["file"])) as picture:
            assert picture.getpixel((0, 0)) == (round(2.55 * index),) * 3


def test_cards_shrink_and_never_grow(tmp_path: Path) -> None:
    images = [np.zeros((500, 1000, 3)), np.zeros((28, 20, 3)), np.zeros((2000, 2, 3))]
    write_case_cards(tmp_path, case_ids(3), *drawn(3), CLASSES, lambda index: images[index])
    sizes = {}
    for entry in read(tmp_path, "pictures.json"):
        with Image.open(tmp_path / str(entry["file"])) as picture:
            sizes[entry["case"]] = picture.size
    assert [sizes[case] for case in case_ids(3)] == [(SIDE, SIDE // 2), (20, 28), (1, SIDE)]


def test_equal_arguments_give_equal_bytes_and_nothing_partial_stays(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_case_cards(tmp_path / name, case_ids(20), *drawn(20), CLASSES, grey)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [*(f"{n}.png" for n in range(6)), "cases.csv", "confusion.json", "pictures.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_probability_that_rounds_above_one_is_one(tmp_path: Path) -> None:
    probabilities = np.array([[1 + 2e-7, 0.0]], np.float32)
    write_case_cards(tmp_path, ["a"], probabilities, np.array([0]), ["x", "y"], grey)
    assert read(tmp_path, "pictures.json")[0]["probability"] == 1.0


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.full((2, 2), 0.5), [0, 1], r"probabilities: expected \(2, 3\), got \(2, 2\)"),
        (np.full((2, 3), np.nan), [0, 1], "expected values in 0 to 1"),
        (np.full((2, 3), 1.5), [0, 1], "expected values in 0 to 1"),
        (np.full((2, 3), 0.3), [0, 3], "labels: expected 0 to 2, got 0 to 3"),
        (np.full((2, 3), 0.3), [0.0, 1.0], r"labels: expected \(2,\) integers"),
        (np.full((2, 3), 0.3), [0], r"labels: expected \(2,\) integers"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, probabilities: np.ndarray, labels: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_case_cards(tmp_path / "p", ["a", "b"], probabilities, np.array(labels), CLASSES, grey)
    assert not (tmp_path / "p").exists()


def test_no_case_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one case"):
        write_case_cards(tmp_path, [], np.zeros((0, 3)), np.zeros(0, int), CLASSES, grey)
