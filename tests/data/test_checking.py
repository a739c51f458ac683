"""The check of a whole federation before anything is trained."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedprompt.config import Study
from fedprompt.data.checking import check_cases
from fedprompt.data.federation import read_federation
from fedprompt.data.phantoms import write_phantoms
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
