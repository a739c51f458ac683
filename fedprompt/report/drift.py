"""A stream of images over time as one HTML file: where the images changed, what adaptation did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedprompt.report.figures import COLOURS, INK, _quiet, _style, _svg
from fedprompt.report.html import page
from fedprompt.report.numerals import DASH, count, difference, duration, share

if TYPE_CHECKING:
    from fedprompt.adaptation.stream_rows import Row

__all__ = ["render_drift"]

WINDOW = 20  # images over which the accepted share is told
MOST_POINTS = 400  # of a line; more images become means of neighbours
_MOST_REASONS = 40

Values = Sequence[float | None]


def render_drift(rows: Sequence[Row], summary: Mapping[str, Any]) -> str:
    """The drift report as HTML text. Equal rows give equal text.

    Args:
        rows: In the order of the stream.
        summary: What `summarised` makes of them.
    """
    reasons = list(summary["passed_through"].items())
    return page(
        "drift.html.j2",
        lead=_lead(summary),
        key_figures=list(_key_figures(rows, summary)),
        figures=[(Markup(svg), caption) for svg, caption in _figures(rows)],  # noqa: S704 - drawn here
        restarts=[(number, row.image) for number, row in enumerate(rows, 1) if row.restarted],
        reasons=reasons[:_MOST_REASONS],
        more_reasons=sum(images for _, images in reasons[_MOST_REASONS:]),
        window=WINDOW,
    )


def _lead(summary: Mapping[str, Any]) -> str:
    images, adapted = summary["images"], summary["adapted"]
    plural = "" if images == 1 else "s"
    passed = images - adapted - summary["without_mask"]
    text = f"{images} image{plural}: {adapted} adapted, {passed} segmented by the network as it is"
    if summary["without_mask"]:
        text += f", {summary['without_mask']} without a mask"
    return f"{text}."


def _key_figures(rows: Sequence[Row], summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Value, label and what stands beside it."""
    yield share(summary["adapted"], summary["images"]), "adapted", f"of {count(summary['images'])} images"
    falls = [
        row.loss_before - row.loss_after
        for row in rows
        if row.accepted and row.loss_before is not None and row.loss_after is not None
    ]
    yield f"{np.mean(falls):.3g}" if falls else DASH, "less alignment loss", "mean over adapted images"
    yield count(summary["restarts"]), "warm-up restarts", "the images changed"
    yield duration(summary["seconds"]), "per image", "mean"
    if summary["dice_before"] is not None:
        change = summary["dice_after"] - summary["dice_before"]
        beside = f"{difference(change)} by adaptation"
        yield f"{summary['dice_after']:.3f}", "mean Dice", beside
        yield difference(summary["worst_change"]), "worst change of Dice", summary["worst_image"]


def _figures(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Every line that has values, and its caption."""
    marks = [number for number, row in enumerate(rows, 1) if row.restarted]

    def column(value: Callable[[Row], float | None]) -> list[float | None]:
        return [value(row) for row in rows]

    losses = {
        "before": column(lambda row: row.loss_before),
        "after": column(lambda row: row.loss_after if row.accepted else row.loss_before),
    }
    entropy, foreground = column(lambda row: row.entropy), column(lambda row: row.foreground)
    dice = {
        place: column(lambda row, at=at: row.mean_dice and row.mean_dice[at])  # type: ignore[misc]
        for at, place in enumerate(("before", "after"))
    }
    drawn: list[tuple[str, dict[str, list[float | None]], str, str]] = [
        (
            "loss",
            losses,
            "alignment loss",
            "How far the image's features are from those of the source; not accepted: after is before.",
        ),
        (
            "entropy",
            {"": entropy},
            "prediction entropy",
            "0: the network is sure of every pixel; 1: of none.",
        ),
        ("foreground", {"": foreground}, "foreground share", "Pixels of the mask that are not background."),
        (
            "accepted",
            {"": _moving_share([row.accepted for row in rows])},
            "accepted share",
            f"Over the last {WINDOW} images.",
        ),
        ("dice", dice, "Dice", "Against the truth, without adaptation and of the written mask."),
    ]
    for name, lines, label, caption in drawn:
        if any(value is not None for values in lines.values() for value in values):
            yield _lines(f"drift-{name}", lines, marks, label=label), caption


def _moving_share(accepted: Sequence[bool]) -> list[float | None]:
    total = np.concatenate([[0], np.cumsum(accepted)])
    return [
        float((total[end] - total[max(end - WINDOW, 0)]) / min(end, WINDOW)) for end in range(1, len(total))
    ]


def _lines(name: str, lines: Mapping[str, Values], marks: Sequence[int], *, label: str) -> str:
    """Lines over the images of the stream, with a mark wherever warm-up restarted.

    Args:
        name: Prefix of the ids in the SVG; unique in a page.
        lines: Values per image by name; a line without a name needs no legend.
        marks: Numbers of images, from 1.
        label: Of the vertical axis.
    """
    with _style(name):
        figure = Figure(figsize=(8.4, 2.6), layout="constrained")
        axes = figure.subplots()
        _quiet(axes)
        for place, mark in enumerate(marks):
            label_of_mark = "warm-up restarted" if place == 0 else "_"
            axes.axvline(mark, color=INK, lw=0.9, ls="--", alpha=0.6, label=label_of_mark, zorder=1)
        for (line, values), colour in zip(lines.items(), COLOURS, strict=False):
            x, y = _thinned(values)
            marker = "o" if len(x) <= 60 else ""
            axes.plot(x, y, color=colour, marker=marker, ms=3.0, lw=1.4, label=line or "_", zorder=2)
        axes.set_xlabel("image")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        if marks or any(lines):
            figure.legend(loc="outside upper left", ncols=3, handlelength=1.8, columnspacing=1.2)
        return _svg(figure, name, f"{label} per image")


def _thinned(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Positions and values of a line, NaN where nothing is known; many neighbours become their mean."""
    y = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    x = np.arange(1, len(y) + 1, dtype=np.float64)
    if len(y) <= MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(y)), MOST_POINTS)
    known = [part[np.isfinite(y[part])] for part in parts]
    means = [y[part].mean() if len(part) else np.nan for part in known]
    return np.array([x[part].mean() for part in parts]), np.array(means)
