"""The table of cases: what is accepted, and one sentence for everything that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedprompt.data.cases import Case, read_cases
from fedprompt.errors import DataError

HEADER = "image,mask,split,patient"


def site(folder: Path, *rows: str, header: str = HEADER, files: tuple[str, ...] = ("a", "b")) -> Path:
    """A site folder with some empty files and a table."""
    for name in files:
        for path in (folder / "images" / f"{name}.png", folder / "masks" / f"{name}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (folder / "cases.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def row(name: str, split: str = "train", patient: str = "") -> str:
    return f"images/{name}.png,masks/{name}.png,{split},{patient}"


def test_reads_a_table(tmp_path: Path) -> None:
    folder = site(tmp_path, row("a", patient="p1"), row("b", "test"))
    assert read_cases(folder) == [
        Case("images/a.png", folder / "images/a.png", folder / "masks/a.png", "train", "p1"),
        Case("images/b.png", folder / "images/b.png", folder / "masks/b.png", "test", "images/b.png"),
    ]


def test_byte_order_mark_windows_lines_blank_lines_and_column_order_do_not_matter(tmp_path: Path) -> None:
    plain = read_cases(site(tmp_path, row("a", patient="p1"), row("b", "val")))
    text = "patient,split,mask,image\np1,train,masks/a.png, images/a.png\n\n,val,masks/b.png,./images/b.png\n"
    (tmp_path / "cases.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_cases(tmp_path) == plain


def test_quoted_values_and_a_linked_data_folder_are_fine(tmp_path: Path) -> None:
    site(tmp_path / "real", '"images/a, b.png",masks/a, b.png', files=("a, b",))
    (tmp_path / "real/cases.csv").write_text(f'{HEADER}\n"images/a, b.png","masks/a, b.png",train,\n')
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [case.id for case in read_cases(tmp_path / "link")] == ["images/a, b.png"]


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ([row("a")], "image,maks,split,patient", ["image,mask,split,patient", "image,maks,split,patient"]),
        (
            [row("a")],
            "image,label,split,patient",
            [
                "columns image,mask,split,patient (segmentation)",
                "got image,label,split,patient (classification)",
            ],
        ),
        ([row("a")], "image;mask;split;patient", ["image,mask,split,patient", "image;mask"]),
        ([row("a")], "image,mask,split", ["image,mask,split,patient"]),
        ([row("a")], f"{HEADER},patient", ["image,mask,split,patient"]),
        ([row("a"), row("b", "training")], HEADER, ["line 3", "split", "training", "train, val or test"]),
        ([row("a"), row("c")], HEADER, ["line 3", "images/c.png", "no such file"]),
        ([row("a"), "images/b.png,masks/c.png,train,"], HEADER, ["line 3", "masks/c.png", "no such file"]),
        ([row("a"), "images/b.png,,train,"], HEADER, ["line 3", "mask"]),
        ([row("a"), "images,masks/b.png,train,"], HEADER, ["line 3", "no such file"]),
        ([row("a"), "images/b.png,masks/b.png"], HEADER, ["line 3", "4 values", "2"]),
        ([row("a"), row("a", "test")], HEADER, ["line 3", "line 2", "images/a.png"]),
        ([row("a"), "./images//a.png,masks/b.png,test,"], HEADER, ["line 3", "line 2"]),
        ([row("a"), '"images/b.png,masks/b.png,train,'], HEADER, ["line 3"]),
        ([row("../a")], HEADER, ["line 2", "inside the site's folder", "../a"]),
        ([], HEADER, ["empty site", "no case"]),
        ([row("a", "test"), row("b", "val")], HEADER, ["empty site", "1 val and 1 test"]),
    ],
)
def test_a_wrong_table_is_one_sentence(
    tmp_path: Path, rows: list[str], header: str, words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        read_cases(site(tmp_path, *rows, header=header))
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "cases.csv") in message
    for word in words:
        assert word in message


def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.touch()
    folder = site(tmp_path / "site")
    (folder / "images/link.png").symlink_to(outside)
    (folder / "images/loop.png").symlink_to(folder / "images/loop.png")
    for image in (str(outside), "../outside.png", "images/../../outside.png", "images/link.png"):
        (folder / "cases.csv").write_text(f"{HEADER}\n{image},masks/a.png,train,\n")
        with pytest.raises(DataError, match=r"line 2.*folder"):
            read_cases(folder)
    (folder / "cases.csv").write_text(f"{HEADER}\nimages/loop.png,masks/a.png,train,\n")
    with pytest.raises(DataError, match="line 2"):
        read_cases(folder)


def test_a_missing_or_unreadable_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cases\.csv: no such file"):
        read_cases(tmp_path)
    (tmp_path / "cases.csv").write_bytes(b"image,mask,split,patient\n\xff\xfe\xfa,b,train,\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_cases(tmp_path)
    (tmp_path / "cases.csv").write_bytes(b"")
    with pytest.raises(DataError, match="got nothing"):
        read_cases(tmp_path)


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    folder = site(tmp_path, row("a", patient="p1"), row("b", "test", patient="p1"))
    with pytest.raises(DataError, match=r"'p1'.*one split, got train and test"):
        read_cases(folder)


LABELS = "image,label,split,patient"


def test_reads_a_table_of_labels(tmp_path: Path) -> None:
    folder = site(tmp_path, "images/a.png,nevus,train,p1", "images/b.png, blue nevus ,test,", header=LABELS)
    assert read_cases(folder, "classification") == [
        Case("images/a.png", folder / "images/a.png", None, "train", "p1", "nevus"),
        Case("images/b.png", folder / "images/b.png", None, "test", "images/b.png", "blue nevus"),
    ]


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (
            [row("a")],
            HEADER,
            [
                "columns image,label,split,patient (classification)",
                "got image,mask,split,patient (segmentation)",
            ],
        ),
        (["images/a.png,nevus,masks/a.png,train,"], "image,label,mask,split,patient", ["image,label,split"]),
        (["images/a.png,,train,"], LABELS, ["line 2", "label", "name of a class", "nothing"]),
        (["images/c.png,nevus,train,"], LABELS, ["line 2", "images/c.png", "no such file"]),
        (["images/a.png,nevus,test,"], LABELS, ["empty site", "1 test"]),
        (
            ["images/a.png,nevus,train,p1", "images/b.png,nevus,val,p1"],
            LABELS,
            ["'p1'", "one split, got train and val"],
        ),
    ],
)
def test_a_wrong_table_of_labels_is_one_sentence(
    tmp_path: Path, rows: list[str], header: str, words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        read_cases(site(tmp_path, *rows, header=header), "classification")
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "cases.csv") in message
    for word in words:
        assert word in message
