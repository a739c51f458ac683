"""The report: complete, self-contained, escaped, right in what it marks as best."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import CLASSES, CLINICS, write_run
from html_page import Page

from fedprompt.report import numerals, write_report
from fedprompt.report.html import render
from fedprompt.report.reader import Run, read_run
from fedprompt.report.site_files import Confusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, rounds=6)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return read_run(folder)


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    return render(run)


def test_the_page_is_whole_and_asks_the_network_for_nothing(text: str) -> None:
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)) > 0
    assert all(
        a.startswith(("#", "data:image/webp;base64,", "data:image/png;base64,")) for a in page.addresses
    )
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert page.tags.isdisjoint({"script", "link", "iframe", "object"})
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert sum(a.startswith("data:image/webp") for a in page.addresses) == 8
    assert len(text) < 3_000_000


def test_it_tells_what_the_run_is_and_did(text: str, run: Run) -> None:
    page = Page(text).text
    for part in (
        "fedlppa over 4 sites, 6 rounds, completed.",
        "seed 0",
        f"{run.mean['dice']:.3f}",
        "9\u202f734 of 489\u202f000 parameters",
        "41.3 kB down",
        "the training loss is not finite",
        "3f" * 32,
        "images/paris_001.png · Dice 0.800",
        'name = "fundus-demo"',
        "takes from",
    ):
        assert part in page, part
    gained = run.mean["dice"] - run.baselines[0].mean["dice"]
    assert numerals.difference(gained) in page
    for figure in ("curve-dice-", "curve-loss-", "dots-", "affinity-", "entropy-"):
        assert f'id="{figure}figure_1"' in text


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("classification")
    write_run(folder, rounds=4, strategy="fedavg", task="classification", sites=CLINICS, baselines=("local",))
    return read_run(folder)


def test_a_classification_is_whole_and_tells_its_own_measures(classified: Run) -> None:
    text = render(classified)
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert sum(a.startswith("data:image/webp") for a in page.addresses) == 4 * 6
    for part in (
        "mean test AUROC",
        "mean test balanced accuracy",
        "AUROC against local",
        numerals.difference(classified.mean["auroc"] - classified.baselines[0].mean["auroc"]),
        f"{classified.mean['balanced_accuracy']:.3f}",
        "Validation AUROC per site and round.",
        "Validation balanced accuracy per site and round.",
        "Training loss per site",
        "oslo, 12 cases",
        "truth mel",
        "first where it was wrong",
    ):
        assert part in page.text, part
    for figure in ("curve-auroc-", "curve-balanced_accuracy-", "curve-loss-", "dots-", "reliability-"):
        assert f'id="{figure}figure_1"' in text
    for word in ("Dice", "HD95", "annotation", "unlabelled"):
        assert word not in page.text.split("study.toml, as it was resolved")[0], word


def test_a_segmentation_has_nothing_of_a_classification(text: str) -> None:
    for word in ("AUROC", "balanced", "calibration", "confidence", "Predictions", 'class="matrix"', ".cards"):
        assert word not in text.split("study.toml, as it was resolved")[0], word


def comparison_rows(text: str) -> dict[str, list[str]]:
    """Cells of the comparison per strategy."""
    found = re.findall(r"<tr[^>]*><th scope=\"row\">(\w+)</th>\s*((?:<td.*?</td>\s*)+)</tr>", text, re.S)
    names = ("fedavg", "local")
    return {name: re.findall(r"<td[^>]*>(.*?)</td>", cells) for name, cells in found if name in names}


def test_a_smaller_calibration_error_is_better(classified: Run) -> None:
    local = classified.baselines[0]
    for ours, best in ((0.02, "fedavg"), (0.5, "local")):
        rows = comparison_rows(render(replace(classified, mean={**classified.mean, "ece": ours})))
        assert len(rows["fedavg"]) == 4 + 4 + 1, "means, sites, bytes"
        assert [name for name, cells in rows.items() if "<b>" in cells[3]] == [best]
    assert local.mean["auroc"] < classified.mean["auroc"]
    assert "<b>" in rows["fedavg"][0]
    assert rows["fedavg"][5] == "–", "oslo has test cases of one class only"


def test_sites_of_a_classification_show_cases_per_class(classified: Run) -> None:
    text = render(classified)
    head = text[text.index("<h2>Sites</h2>") :].split("</thead>")[0]
    columns = re.findall(r"<th[^>]*>(.*?)</th>", head)
    assert columns[:6] == [
        "site", "train", "val", "test", "train<small>mel</small>", "train<small>nv</small>",
    ]  # fmt: skip
    assert columns[6:10] == ["AUROC<small>mean</small>", *(f"AUROC<small>{name}</small>" for name in CLASSES)]
    assert columns[10:] == ["balanced accuracy", "macro F1", "accuracy", "ECE", "Brier score"]


def test_the_confusion_matrix_counts_cases_of_the_truth_in_rows(classified: Run) -> None:
    matrix = Confusion(("x", "y"), ((3, 1), (0, 0)), ())
    site = replace(classified.sites["oslo"], confusion=matrix)
    text = render(replace(classified, sites={"oslo": site}))
    table = text[text.index('<table class="matrix">') :].split("</table>")[0]
    rows = re.findall(r"<tr><th scope=\"row\">(\w)</th>(.*?)</tr>", table)
    cells = {truth: re.findall(r"<td class=\"(.*?)\"(.*?)>(.*?)</td>", row) for truth, row in rows}
    assert cells["x"] == [
        ("n own", ' style="--share:75%"', "3"),
        ("n", ' style="--share:25%"', "1"),
        ("n", "", "75 %"),
    ]
    assert [text for _, _, text in cells["y"]] == ["0", "0", "–"]
    assert "oslo, 4 cases" in table


def test_matrices_without_room_are_counted(classified: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedprompt.report.html.MOST_CLASSES", 2)
    text = render(classified)
    assert 'class="matrix"' not in text
    assert "The confusion matrices of 4 more sites are in the run directory." in Page(text).text
    monkeypatch.undo()
    monkeypatch.setattr("fedprompt.report.html.MOST_DOTS", 3)
    text = render(classified)
    assert text.count('class="matrix"') == 3
    assert "The confusion matrix of 1 more site is in the run directory." in Page(text).text


def test_a_card_says_whether_it_is_right(classified: Run) -> None:
    overlay = classified.sites["oslo"].overlays[0]
    cards = (
        replace(overlay, case="wrong", truth="mel", prediction="nv", probability=0.834),
        replace(overlay, case="right", truth="nv", prediction="nv", probability=None),
    )
    site = replace(classified.sites["oslo"], overlays=cards)
    text = render(replace(classified, sites={"oslo": site}))
    assert 'wrong<br>truth mel<br><span class="wrong">✗ predicted nv, 0.83</span>' in text
    assert "right<br>truth nv<br><span>✓ predicted nv, –</span>" in text


def test_class_names_are_escaped(tmp_path: Path) -> None:
    evil = '<script>&"'
    write_run(tmp_path, rounds=1, strategy="fedavg", task="classification", sites=CLINICS, baselines=())
    pictures = tmp_path / "sites" / "oslo" / "pictures"
    for name in ("confusion.json", "pictures.json"):
        text = (pictures / name).read_text()
        (pictures / name).write_text(
            text.replace('"mel"', json.dumps(evil)).replace('"nv"', json.dumps(evil))
        )
    summary = (tmp_path / "summary.json").read_text().replace('"mel"', json.dumps(evil))
    (tmp_path / "summary.json").write_text(summary)
    text = write_page(tmp_path)
    assert "<script" not in text
    assert text.count("&lt;script&gt;&amp;&#34;") >= 5


def test_an_unfinished_classification(tmp_path: Path) -> None:
    write_run(
        tmp_path,
        rounds=2,
        finished=False,
        pictures=0,
        strategy="fedavg",
        task="classification",
        sites=CLINICS,
    )
    page = Page(render(read_run(tmp_path)))
    assert "mean validation AUROC" in page.text
    assert "mean validation balanced accuracy" in page.text
    assert "Comparison" not in page.text
    assert "Predictions" not in page.text
    assert "reliability-figure_1" not in page.ids


def test_equal_runs_give_equal_pages(text: str, folder: Path) -> None:
    assert render(read_run(folder)) == text


def test_the_best_of_every_column_is_bold(run: Run) -> None:
    worse = replace(run, mean={**run.mean, "dice": 0.5, "hd95": 99.0})
    rows = re.findall(
        r"<tr[^>]*><th scope=\"row\">(\w+)</th>\s*((?:<td.*?</td>\s*)+)</tr>", render(worse), re.S
    )
    table = {name: re.findall(r"<td[^>]*>(.*?)</td>", cells) for name, cells in rows[:4]}
    assert list(table) == ["fedlppa", "frozen", "local", "fedavg"]
    assert [name for name, cells in table.items() if "<b>" in cells[0]] == ["fedavg"]
    assert [name for name, cells in table.items() if "<b>" in cells[1]] == ["fedavg"]
    assert [name for name, cells in table.items() if "<b>" in cells[2]] == ["fedlppa"]
    assert not any("<b>" in cells[-1] for cells in table.values()), "fewer bytes are no merit"


def test_nothing_is_best_where_all_are_alike(run: Run) -> None:
    alike = replace(run, baselines=(replace(run, name="twin", baselines=()),))
    assert '<td class="n"><b>' not in render(alike)


def test_everything_from_the_run_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$x$')</script>\"&"
    events = [
        {"event": "study_started", "study": evil, "strategy": evil, "rounds": 1, "seed": 0},
        {"event": "site_joined", "site": evil, "annotation": evil, "environment": {evil: evil}},
        {"event": "site_reported", "round": 1, "site": evil, "metrics": {"dice": 0.5}, "loss": 1.0},
        {"event": "site_dropped", "round": 1, "site": evil, "code": evil, "reason": evil},
        {"event": "round_finished", "round": 1, "strategy": {"affinity": {evil: {evil: 1.0}}}},
        {"event": "evaluated", "sites": {evil: {"dice": 0.5}}, "mean": {"dice": 0.5}},
        {"event": "study_finished", "status": "stopped", "reason": evil},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps({**e, "time": evil}) + "\n" for e in events))
    (tmp_path / "study.toml").write_text(evil)
    text = render(read_run(tmp_path))
    assert "<script" not in text
    assert "script" not in Page(text).tags
    assert evil in Page(text).text


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=2, finished=False, pictures=0)
    text = Page(render(read_run(tmp_path))).text
    assert "2 of 15 rounds so far" in text
    assert "This run is not finished" in text
    assert "mean validation Dice" in text
    assert "Comparison" not in text
    assert "Pictures" not in text


def test_a_run_in_which_nothing_happened_yet(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text("")
    page = Page(write_page(tmp_path))
    assert "An unknown strategy over 0 sites, 0 rounds so far." in page.text
    assert "svg" not in page.tags


def test_many_sites_become_a_band_and_the_worst(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=2, pictures=0, sites={f"site-{n:02}": "box" for n in range(30)})
    page = Page(write_page(tmp_path))
    assert "worst" in page.text
    assert "10 to 90 % of sites" in page.text
    assert "dots-figure_1" not in page.ids
    assert "site-29" in page.text


def test_pictures_beyond_the_limit_are_left_out_in_turns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedprompt.report.html.PICTURE_BYTES", 1)
    text = render(run)
    assert text.count("data:image/webp") == 1
    assert "7 more pictures are in the run directory" in text


def test_an_unreadable_picture_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=1, baselines=())
    (tmp_path / "sites" / "paris" / "pictures" / "1-case.png").write_bytes(b"\x89PNG")
    text = write_page(tmp_path)
    assert text.count("data:image/webp") == 7
    assert "1 more picture is in the run directory" in text


def write_page(folder: Path) -> str:
    write_report(folder, folder / "report.html")
    return (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (numerals.difference(-0.0123), "−0.012"),
        (numerals.count(1234567), "1\u202f234\u202f567"),
        (numerals.share(9_734, 489_000), "2 %"),
        (numerals.share(1, 0), "–"),
        (numerals.share(3, 2), "150 %"),
        (numerals.size(0), "0 B"),
        (numerals.size(999_600), "1 MB"),
        (numerals.size(39_124), "39.1 kB"),
        (numerals.size(232_400), "232 kB"),
        (numerals.size(5e12), "5000 GB"),
        (numerals.duration(5.31), "5.3 s"),
        (numerals.duration(99.6), "1 min 40 s"),
        (numerals.duration(7_300), "2 h 01 min"),
    ],
)
def test_numbers_read_well(text: str, expected: str) -> None:
    assert text == expected
