"""Curves, dots, reliability and the heat map of a report as inline SVG in the colour of the page's text."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedprompt.report.history import Numbers

__all__ = ["MOST_LINES", "affinity_map", "curves", "reliability", "site_dots"]

MOST_LINES = 8  # sites with a line of their own; more become a band
INK = "#123456"  # stands for the text colour of the page
# Okabe and Ito's palette, dark and light tones that hold on white and on near-black
COLOURS = ("#1a7fc0", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c7a00", "#8f8f8f")
MARKERS = "osD^vPX*"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def curves(
    name: str,
    lines: Mapping[str, Sequence[tuple[int, float]]],
    mean: Sequence[tuple[int, float]],
    *,
    label: str,
) -> str:
    """One line per site over the rounds, and their mean in the text colour.

    Args:
        name: Prefix of the ids in the SVG; unique in a page.
        lines: Per site (round, value); more than `MOST_LINES` are drawn as a band of 10 to 90 %.
        mean: (round, value); alone it needs no legend.
        label: Of the vertical axis.
    """
    with _style(name):
        figure = Figure(figsize=(5.4, 3.3), layout="constrained")
        axes = figure.subplots()
        _quiet(axes)
        if len(lines) > MOST_LINES:
            _band(axes, lines)
        else:
            for (site, points), colour, marker in zip(lines.items(), COLOURS, MARKERS, strict=False):
                axes.plot(*_columns(points), color=colour, marker=marker, ms=3.5, lw=1.4, label=_short(site))
        if mean:
            axes.plot(*_columns(mean), color=INK, lw=2.2, label="mean")
        axes.set_xlabel("round")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        if lines:
            figure.legend(loc="outside upper left", ncols=5, handlelength=1.4, columnspacing=1.2)
        return _svg(figure, name, f"{label} per round")


def site_dots(name: str, runs: Mapping[str, Numbers], *, label: str) -> str:
    """One row per site, one dot per run: the first run filled in the accent colour, the others hollow.

    Args:
        name: Prefix of the ids in the SVG.
        runs: Per run, in order of importance, the value of each site.
        label: Of the horizontal axis.
    """
    sites = list(dict.fromkeys(site for values in runs.values() for site in values))[::-1]
    with _style(name):
        figure = Figure(figsize=(8.4, max(1.4, 0.36 * len(sites) + 0.9)), layout="constrained")
        axes = figure.subplots()
        _quiet(axes, "x")
        for row, site in enumerate(sites):
            found = [values[site] for values in runs.values() if site in values]
            axes.plot([min(found), max(found)], [row, row], color=INK, lw=0.8, alpha=0.35, zorder=1)
        for position, (run, values) in reversed(list(enumerate(runs.items()))):
            colour = COLOURS[position % len(COLOURS)]
            points = [(values[site], row) for row, site in enumerate(sites) if site in values]
            axes.scatter(
                *_columns(points),
                s=64 if position == 0 else 34,
                marker=MARKERS[position % len(MARKERS)],
                facecolor=colour if position == 0 else "none",
                edgecolor=colour,
                linewidths=1.5,
                label=_short(run),
                zorder=3 - position / 100,
            )
        axes.set_yticks(range(len(sites)), [_short(site) for site in sites])
        axes.set_ylim(-0.6, len(sites) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(label)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=5, columnspacing=1.2)
        return _svg(figure, name, f"{label} of every site and strategy")


def reliability(
    name: str,
    sites: Mapping[str, Sequence[tuple[float, float, int]]],
    pooled: Sequence[tuple[float, float, int]],
) -> str:
    """How often predictions are right against how sure the model was; the diagonal is what should be.

    Args:
        name: Prefix of the ids in the SVG.
        sites: Per site its bins (mean confidence, share of right predictions, cases) as dots whose area grows
            with the cases. More than `MOST_LINES` sites share one colour.
        pooled: The bins over the cases of all sites, as a line.
    """
    most = max(cases for bins in sites.values() for _, _, cases in bins)
    alike = len(sites) > MOST_LINES
    with _style(name):
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        axes = figure.subplots()
        _quiet(axes)
        axes.plot([0, 1], [0, 1], color=INK, lw=1, ls="--", alpha=0.6, zorder=1)
        for position, (site, bins) in enumerate(sites.items()):
            axes.scatter(
                *_columns([(confidence, accuracy) for confidence, accuracy, _ in bins]),
                s=[10 + 90 * cases / max(most, 1) for _, _, cases in bins],
                marker=MARKERS[0 if alike else position],
                color=COLOURS[0 if alike else position],
                alpha=0.4 if alike else 0.75,
                linewidths=0,
                label=_short(site) if not alike else "_" if position else "each site",
                zorder=2,
            )
        points = [(confidence, accuracy) for confidence, accuracy, _ in pooled]
        axes.plot(*_columns(points), color=INK, lw=2, label="all cases", zorder=3)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_aspect("equal")
        axes.set_xlabel("confidence: probability of the prediction")
        axes.set_ylabel("share of right predictions")
        legend = figure.legend(loc="outside upper left", ncols=5, handletextpad=0.4, columnspacing=1.2)
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([40])  # in the figure a dot's area tells its cases
        return _svg(figure, name, "Reliability of the probabilities")


def affinity_map(name: str, weights: Mapping[str, Numbers]) -> str:
    """Row: a site; column: from whom it takes; colour and number: how much.

    Args:
        name: Prefix of the ids in the SVG.
        weights: Share per site and other site; rows sum to 1.
    """
    sites = list(weights)
    shares = np.array([[weights[row].get(column, 0.0) for column in sites] for row in sites])
    side = 0.42 * len(sites) + 1.5
    with _style(name):
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.subplots()
        mesh = axes.pcolormesh(
            shares, cmap="cividis", vmin=0, vmax=max(shares.max(), 1e-9), edgecolors="none"
        )
        axes.set_aspect("equal")
        axes.invert_yaxis()
        labels = [_short(site) for site in sites]
        axes.set_xticks(np.arange(len(sites)) + 0.5, labels, rotation=90 if len(sites) > 5 else 0)
        axes.set_yticks(np.arange(len(sites)) + 0.5, labels)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("takes from")
        for row, column in np.ndindex(*shares.shape) if len(sites) <= 12 else ():
            share = shares[row, column]
            ink = "#ffffff" if share < 0.55 * shares.max() else "#000000"
            axes.text(column + 0.5, row + 0.5, f"{share:.2f}", ha="center", va="center", color=ink, size=9)
        bar = figure.colorbar(mesh, ax=axes, shrink=0.8)
        bar.outline.set_visible(False)
        return _svg(figure, name, "Affinity of the sites")


def _style(name: str) -> AbstractContextManager[None]:
    settings: Any = {**_STYLE, "svg.hashsalt": name}
    return mpl.rc_context(settings)


def _short(name: str) -> str:
    """A name that leaves room for the figure."""
    return name if len(name) <= 20 else f"{name[:19]}…"


def _quiet(axes: Axes, axis: str = "y") -> None:
    axes.grid(axis="x" if axis == "x" else "y", color=INK, alpha=0.15, lw=0.6)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _band(axes: Axes, lines: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Where four of five sites are, round by round."""
    values: dict[int, list[float]] = {}
    for points in lines.values():
        for count, value in points:
            values.setdefault(count, []).append(value)
    counts = sorted(values)
    for low, high, alpha in ((10, 90, 0.18), (25, 75, 0.3)):
        lower, upper = np.array([np.percentile(values[count], (low, high)) for count in counts]).T
        axes.fill_between(
            counts, lower, upper, color=COLOURS[0], alpha=alpha, lw=0, label=f"{low} to {high} % of sites"
        )


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an SVG element: no fixed size or font, ids of its own, ink in the page's text colour."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    width, height = map(float, re.findall(r"viewBox=\"0 0 (\S+) (\S+)\"", text)[0])
    size = f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}pt"'
    text = re.sub(r"^<svg[^>]*>", f'<svg role="img" aria-label="{title}" {size}>', text)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", text)
    text = re.sub(r"font-family: [^;\"]*;", "", text)
    return text.replace(INK, "currentColor")
