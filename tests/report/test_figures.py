"""Figures: well-formed SVG, ids of their own, no fixed ink."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from fedprompt.report.figures import INK, MOST_LINES, reliability
from fedprompt.report.site_files import Bin

BINS = [Bin(0.4, 0.3, 2), Bin(0.9, 1.0, 50)]


def texts(svg: str) -> list[str]:
    whole = ElementTree.fromstring(svg)  # noqa: S314 - drawn here
    return [element.text or "" for element in whole.iter() if element.tag.endswith("text")]


@pytest.mark.parametrize("sites", [1, 4, MOST_LINES])
def test_reliability_names_every_site(sites: int) -> None:
    names = [f"site-{number}" for number in range(sites)]
    found = texts(reliability("r", dict.fromkeys(names, BINS), BINS))
    assert set(names) <= set(found)
    assert "all cases" in found


def test_many_sites_share_a_name_and_a_colour() -> None:
    names = [f"site-{number}" for number in range(MOST_LINES + 1)]
    found = texts(reliability("r", dict.fromkeys(names, BINS), BINS))
    assert found.count("each site") == 1
    assert not set(names) & set(found)


def test_reliability_takes_its_ink_from_the_page_and_escapes() -> None:
    svg = reliability("r", {"<b>&": BINS}, BINS)
    assert "<b>&" in texts(svg)
    assert INK not in svg
    assert 'id="r-figure_1"' in svg
    assert svg == reliability("r", {"<b>&": BINS}, BINS)


def test_bins_without_cases_are_drawn_too() -> None:
    assert reliability("r", {"a": [Bin(0.5, 0.5, 0)]}, []).startswith("<svg")
