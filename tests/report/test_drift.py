"""The drift report: every line over the stream, restarts marked, everything inside one file."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from fedprompt.adaptation.stream_rows import Row, summarised
from fedprompt.report.drift import MOST_POINTS, WINDOW, _moving_share, _thinned, render_drift


def stream(count: int, *, truth: bool = False, restarts: tuple[int, ...] = ()) -> list[Row]:
    return [
        Row(
            image=f"{number:05}.png",
            accepted=number % 3 > 0,
            reason="" if number % 3 else "the loss did not fall",
            loss_before=0.5 + number / count,
            loss_after=0.4 + number / count,
            entropy=0.2,
            agreement=0.9,
            foreground=0.1,
            restarted=number in restarts,
            seconds=0.25,
            dice_before={"disc": 0.5, "cup": 0.7} if truth else {},
            dice_after={"disc": 0.6, "cup": 0.7} if truth else {},
        )
        for number in range(count)
    ]


def page(rows: list[Row]) -> str:
    return render_drift(rows, summarised(rows))


def figures(text: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)


def labels(text: str) -> list[list[str]]:
    """The texts of every figure, which must be well-formed."""
    return [
        [
            element.text or ""
            for element in ElementTree.fromstring(svg).iter()  # noqa: S314 - drawn here
            if element.tag.endswith("text")
        ]
        for svg in figures(text)
    ]


def test_the_page_shows_every_line_and_where_warm_up_restarted() -> None:
    rows = stream(30, truth=True, restarts=(12, 20))
    text = page(rows)
    axes = ["alignment loss", "prediction entropy", "foreground share", "accepted share", "Dice"]
    found = labels(text)
    assert len(found) == len(axes)
    for axis, words in zip(axes, found, strict=True):
        assert axis in words
        assert "warm-up restarted" in words
    assert {"before", "after"} <= set(found[0])
    assert "30 images: 20 adapted, 10 segmented by the network as it is." in text
    for row in (12, 20):
        assert f'<th scope="row">{row:05}.png</th><td class="n">{row + 1}</td>' in text
    assert '<th scope="row">the loss did not fall</th><td class="n">10</td>' in text
    for value in ("67 %", "0.650", "+0.050"):  # adapted, mean Dice, its change
        assert value in text


def test_what_nobody_knows_is_left_out() -> None:
    found = labels(page(stream(5)))
    assert len(found) == 4
    assert not any("warm-up restarted" in words for words in found)
    failed = [Row(f"{number}.png", False, "cut off") for number in range(3)]
    text = page(failed)
    assert [words for words in labels(text) if "accepted share" in words]
    assert len(figures(text)) == 1
    assert "3 images: 0 adapted, 0 segmented by the network as it is, 3 without a mask." in text
    assert "No image yet." in page([])


def test_the_page_asks_the_network_for_nothing_and_escapes() -> None:
    rows = [Row("<b>&.png", False, "<script>alert(1)</script>", restarted=True, foreground=0.5)]
    text = page(rows)
    assert "<script" not in text
    assert "&lt;b&gt;&amp;.png" in text
    assert not re.search(r'(src|href)="(?!#)', text)
    assert not re.search(r"url\((?!#)|@import", text)

    class Closed(HTMLParser):
        void = ("meta", "link", "br", "img")

        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in self.void:
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    parser = Closed()
    parser.feed(text)
    assert parser.open == []


def test_equal_rows_give_equal_pages_with_ids_of_their_own() -> None:
    text = page(stream(9))
    assert text == page(stream(9))
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_long_streams_are_thinned_and_stay_small() -> None:
    text = page(stream(10_000, restarts=(5000,)))
    assert len(text) < 600_000
    x, y = _thinned([float(number) for number in range(10_000)])
    assert len(x) == MOST_POINTS
    assert x[0] == 13.0  # the first of 400 parts has the images 1 to 25
    assert y[0] == 12.0


def test_gaps_stay_gaps() -> None:
    x, y = _thinned([1.0, None, 3.0])
    assert x.tolist() == [1, 2, 3]
    assert y[1] != y[1]
    _, many = _thinned([None] * 1000 + [2.0] * 1000)
    assert many[0] != many[0]
    assert many[-1] == 2


def test_the_share_moves_with_the_window() -> None:
    shares = _moving_share([True] * WINDOW + [False] * WINDOW)
    assert shares[0] == shares[WINDOW - 1] == 1
    assert shares[WINDOW] == pytest.approx(1 - 1 / WINDOW)
    assert shares[-1] == 0
