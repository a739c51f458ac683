"""The check of a whole federation before anything is trained."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedprompt.config import Study
from fedprompt.data.checking import check_cases
from fedprompt.data.federation import read_federation
from fedprompt.data.phantoms import LESION_CLASSES, write_phantoms
from fedprompt.errors import DataError


def repaint(mask: Path) -> None:
    """Class numbers to 0 and 255, as many tools save masks."""
    array = np.array(Image.open(mask))
    Image.fromarray(np.where(array > 0, 255, 0).astype(np.uint8)).save(mask)


def repainted(folder: Path, split: str) -> Path:
    write_phantoms(folder, seed=0, size=32, limit=2)
    table = (folder / "ashford" / "cases.csv").read_text().splitlines()[1:]
    masks = [line.split(",")[1] for line in table if line.split(",")[2] == split]
    for mask in masks:
        repaint(folder / "ashford" / mask)
    return folder / "ashford" / masks[0]


def test_a_sound_federation_is_counted(tmp_path: Path) -> None:
    write_phantoms(tmp_path, seed=0, size=32, limit=2)
    sites = read_federation(tmp_path, Study())
    assert check_cases(sites, Study()) == sum(
        len((site.data / "cases.csv").read_text().splitlines()) - 1 for site in sites
    )


@pytest.mark.parametrize(("split", "says"), [("train", "ashford"), ("val", "masks"), ("test", "masks")])
def test_masks_of_0_and_255_are_named(tmp_path: Path, split: str, says: str) -> None:
    repainted(tmp_path, split)
    with pytest.raises(DataError, match="255") as caught:
        check_cases(read_federation(tmp_path, Study()), Study())
    assert says in str(caught.value)


LESIONS = Study(task="classification", classes=LESION_CLASSES)


def lesions(folder: Path) -> Path:
    """A sound federation of labelled cases, of which each class has some to train on."""
    write_phantoms(folder, seed=0, size=32, limit=3, task="classification")
    return folder


def relabel(folder: Path, site: str, old: str, new: str) -> None:
    table = folder / site / "cases.csv"
    table.write_text(table.read_text().replace(old, new))


def check(folder: Path, study: Study = LESIONS) -> int:
    return check_cases(read_federation(folder, study), study)


def test_a_sound_federation_of_labels_is_counted(tmp_path: Path) -> None:
    tables = [t.read_text().splitlines() for t in lesions(tmp_path).glob("*/cases.csv")]
    assert check(tmp_path) == sum(len(lines) - 1 for lines in tables) == 4 * 9


def test_a_label_that_differs_at_one_site_is_named(tmp_path: Path) -> None:
    relabel(lesions(tmp_path), "cedarhill", ",melanoma,", ",mel,")
    words = r"cedarhill.cases\.csv: images.*png: label 'mel' is no class .*nevus, melanoma, keratosis"
    with pytest.raises(DataError, match=words):
        check(tmp_path)


def test_a_site_of_one_class_is_fine_as_long_as_others_train_the_rest(tmp_path: Path) -> None:
    lesions(tmp_path)
    for name in ("melanoma", "keratosis"):
        relabel(tmp_path, "ashford", f",{name},", ",nevus,")
    assert check(tmp_path) == 36


def test_a_class_that_no_site_trains_is_named_even_if_tested(tmp_path: Path) -> None:
    lesions(tmp_path)
    for site in ("ashford", "brookside", "cedarhill", "dunmore"):
        relabel(tmp_path, site, ",melanoma,train,", ",nevus,train,")
    with pytest.raises(DataError, match=r"class 'melanoma'.*none at ashford, brookside, cedarhill, dunmore"):
        check(tmp_path)


def test_cases_taken_for_validation_do_not_count_as_train_cases(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "one").mkdir()
    rows = ["image,label,split,patient"]
    for name, label in (("a", "nevus"), ("b", "melanoma"), ("c", "keratosis")):
        (tmp_path / "one" / f"{name}.png").write_bytes((tmp_path / "a.png").read_bytes())
        rows.append(f"{name}.png,{label},train,")
    (tmp_path / "one" / "cases.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"class '.*': expected train cases"):
        check(tmp_path)
    assert check(tmp_path, LESIONS.changed(training={"validation": 0.0})) == 3


def test_a_table_of_the_other_task_and_a_broken_image_are_named(tmp_path: Path) -> None:
    lesions(tmp_path)
    with pytest.raises(DataError, match=r"\(segmentation\), got .*\(classification\)"):
        check(tmp_path, Study())
    image = next((tmp_path / "dunmore" / "images").iterdir())
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(DataError, match=image.name):
        check(tmp_path)
