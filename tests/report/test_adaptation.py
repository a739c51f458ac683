"""The page about adaptation: self-contained, right numbers, figures that say what they are given."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from html_page import Page

from fedprompt.report.adaptation import Content, Example, Line, Spectrum, render_adaptation
from fedprompt.report.figures import INK
from fedprompt.report.spectra import SEEN, amplitude_profile, course, prompt_at_work, ring_amplitudes

RNG = np.random.default_rng(0)
GAINS = np.ones((3, 3, 3))
GAINS[0, 1, 1] = 1.75


def line(name: str, dice: list[float], *, adapts: bool = False) -> Line:
    count = len(dice)
    told = (
        {
            "accepted": [True] * (count - 1) + [False],
            "reasons": [""] * (count - 1) + ["the <mask> vanished"],
            "losses": [(1.0, 0.5)] * (count - 1) + [(None, None)],
        }
        if adapts
        else {}
    )
    return Line(name, f"what {name} is", dice, [0.02] * count, **told)  # type: ignore[arg-type]


def example(why: str, *, prompted: bool) -> Example:
    image = RNG.random((32, 32, 3)).astype("f4")
    truth = np.zeros((32, 32), np.uint8)
    truth[8:20, 8:20] = 1
    names = ("source", "shared", "adapted")
    return Example(
        case=f"{why} & one",
        why=why,
        image=image,
        truth=truth,
        masks=dict.fromkeys(names, truth),
        dice=dict.fromkeys(names, 0.61),
        prompted=image * 0.9 if prompted else None,
        gains=GAINS if prompted else None,
    )


def amplitudes(scale: float) -> np.ndarray:
    return scale * np.ones((3, SEEN + 1))


@pytest.fixture
def content() -> Content:
    return Content(
        title="Adaptation <here>",
        lead="Three sites & one more.",
        note="",
        classes=("background", "disc"),
        lines=(
            line("source", [0.2, 0.4, 0.6]),
            line("shared", [0.5, 0.5, 0.5]),
            line("adapted", [0.7, 0.504, 0.4], adapts=True),
        ),
        examples=[example("best", prompted=True), example("worst", prompted=False)],
        spectrum=Spectrum(amplitudes(1), amplitudes(2), amplitudes(1.5), 1),
        facts={"seed": "7"},
    )


def test_the_page_is_self_contained_and_the_same_again(content: Content) -> None:
    text = render_adaptation(content)
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert sum(address.startswith("data:image/webp") for address in page.addresses) == 2
    assert "<script" not in text
    assert text == render_adaptation(content)
    assert INK not in text


def test_the_page_escapes_what_it_is_told(content: Content) -> None:
    page = Page(render_adaptation(content))
    for told in ("Adaptation <here>", "Three sites & one more.", "best & one", "the <mask> vanished"):
        assert told in page.text
    assert "mask" not in page.tags


def test_the_table_tells_means_changes_and_shares(content: Content) -> None:
    text = render_adaptation(content)
    rows = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", text, re.DOTALL)
    ]
    dash = "–"
    assert rows[1:] == [
        ["source", "what source is", "0.400", dash, dash, dash, dash, "20 ms"],
        ["shared", "what shared is", "0.500", "+0.100", "−0.100", "2 / 1", dash, "20 ms"],
        ["adapted", "what adapted is", "<b>0.535</b>", "+0.035", "−0.100", "1 / 1", "67 %", "20 ms"],
    ]
    assert "<dt>1 image</dt><dd>the &lt;mask&gt; vanished</dd>" in text


def test_only_images_with_a_prompt_show_one(content: Content) -> None:
    assert render_adaptation(content).count("An image and its amplitude spectrum") == 1
    none = replace(content, examples=[example("worst", prompted=False)])
    text = render_adaptation(none)
    assert "An image and its amplitude spectrum" not in text
    assert "The prompt of an image" not in text
    assert "Amplitudes relative to those of the source images" in text


def texts(svg: str) -> list[str]:
    whole = ElementTree.fromstring(svg)  # noqa: S314 - drawn here
    return [element.text or "" for element in whole.iter() if element.tag.endswith("text")]


def test_ring_amplitudes_find_brightness_and_waves_where_they_are() -> None:
    x = np.arange(40) / 40
    wave = 0.3 + 0.2 * np.cos(2 * np.pi * 3 * x)
    image = np.broadcast_to(wave[None, :, None], (24, 40, 3)) * np.array([1.0, 0.5, 0.0])
    found = ring_amplitudes(image, 4)
    assert found.shape == (3, 5)
    assert found[:, 0] == pytest.approx([0.3, 0.15, 0.0])
    entries = 7 * 7 - 5 * 5  # of the ring at 3, two of which the wave fills with half its height each
    assert found[0, 3] == pytest.approx(0.2 / entries)
    assert found[:, [1, 2, 4]] == pytest.approx(0)


def test_the_course_marks_images_that_were_not_adapted() -> None:
    dice = {"one": [0.1, 0.2, 0.3], "two": [0.2, 0.2, 0.2]}
    marked = course("c", dice, [0.1, 0.0, -0.1], [True, False, True], [(1, 0.5), (None, None), (2, 1)])
    assert {"one", "two", "not adapted", "loss before the step", "alignment loss"} <= set(texts(marked))
    plain = course("c", dice, [0.1, 0.0, -0.1], [True] * 3, [(None, None)] * 3)
    assert not {"not adapted", "loss after"} & set(texts(plain))


@pytest.mark.parametrize("images", [1, 200])
def test_a_course_of_any_length_is_drawn(images: int) -> None:
    values = [0.5] * images
    assert "Dice" in texts(course("c", {"a": values}, values, [True] * images, [(1.0, 0.5)] * images))


def test_the_profile_has_a_panel_per_channel_and_tells_what_is_compared() -> None:
    lines = {"before": amplitudes(2), "after": amplitudes(1)}
    found = texts(amplitude_profile("p", amplitudes(1), lines, radius=1, reference="the source"))
    assert {"red", "green", "blue", "before", "after", "the source", "2×"} <= set(found)
    grey = {"before": amplitudes(2)[:1]}
    assert "grey" in texts(amplitude_profile("p", amplitudes(1)[:1], grey, radius=1, reference="s"))


def test_a_prompt_shows_its_gains_as_numbers_where_there_is_room() -> None:
    image = RNG.random((32, 48, 3))
    found = texts(prompt_at_work("w", image, image, GAINS))
    assert found.count("1.75") == 1
    assert found.count("1.00") == 26
    wide = texts(prompt_at_work("w", image, image, np.full((3, 5, 5), 1.25)))
    assert "1.25" not in wide
