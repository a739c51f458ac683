"""A run as one HTML file that asks the network for nothing: style, figures and pictures are inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from fedprompt import __version__
from fedprompt.report import numerals
from fedprompt.report.figures import affinity_map, curves, reliability, site_dots
from fedprompt.report.measures import LOSS, measures_of
from fedprompt.report.pictures import TILES, class_colours
from fedprompt.report.reader import Run
from fedprompt.report.site_files import Confusion, Overlay, pooled
from fedprompt.report.tables import MatrixRow, comparison, key_figures, matrix_rows, site_columns, site_rows

__all__ = ["page", "picture_address", "render"]

MOST_DOTS = 24  # sites with a row in the dot plot and in the affinity map, or a confusion matrix
MOST_CLASSES = 16  # in a confusion matrix
PICTURE_BYTES = 3_000_000  # all pictures of a report together


def render(run: Run) -> str:
    """The report of a run as HTML text. Equal runs give equal text."""
    measures = measures_of(run.task)
    columns, rows = comparison([run, *run.baselines], measures)
    gallery, left_out = _gallery(run)
    matrices, hidden = _matrices(run)
    return page(
        "report.html.j2",
        run=run,
        measures=measures,
        lead=_lead(run),
        key_figures=list(key_figures(run)),
        columns=columns,
        rows=rows,
        rounds=[(Markup(svg), caption) for svg, caption in _rounds(run)],  # noqa: S704 - drawn here
        figures={name: Markup(svg) for name, svg in _figures(run)},  # noqa: S704 - drawn here
        site_columns=site_columns(run),
        site_rows=list(site_rows(run)),
        matrices=matrices,
        hidden_matrices=hidden,
        gallery=gallery,
        left_out=left_out,
        tiles=TILES,
        colours=class_colours(run.classes) if run.classes else {},
        entropy=_last([entry.entropy for entry in run.rounds]),
    )


def page(template: str, **values: Any) -> str:
    """A page from one of the templates beside this file."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": numerals.count, "fraction": _fraction, "dash": _dash}
    return environment.get_template(template).render(version=__version__, **values)


def picture_address(picture: Image.Image) -> str:
    """The picture itself as an address, so that a page carries it."""
    return f"data:image/webp;base64,{base64.b64encode(_webp(picture)).decode()}"


def _dash(value: Any) -> str:
    return numerals.DASH if value is None or value == "" else str(value)


def _fraction(value: float | None) -> str:
    return numerals.DASH if value is None else f"{value:.2f}"


def _lead(run: Run) -> str:
    """One sentence: what the run is and whether it came to its end."""
    done = sum(entry.finished for entry in run.rounds)
    planned = f" of {run.rounds_planned}" if run.rounds_planned not in (None, done) else ""
    plural = "" if done == 1 and not planned else "s"
    text = (
        f"{run.strategy or 'An unknown strategy'} over {len(run.sites)} sites, {done}{planned} round{plural}"
    )
    if run.finished:
        return f"{text}, completed."
    if run.status == "unfinished":
        return f"{text} so far."
    return f"{text}, {run.status}{f': {run.reason}' if run.reason else ''}."


def _rounds(run: Run) -> Iterator[tuple[str, str]]:
    """Curves over the rounds and their captions: what the sites' validation cases tell, then the loss."""
    for measure in measures_of(run.task).headline:
        caption = f"Validation {measure.label} per site and round."
        yield from _curve(run, measure.key, f"validation {measure.label}", caption)
    caption = "Training loss per site and round, mean over the local steps."
    yield from _curve(run, LOSS.key, "training loss", caption)


def _curve(run: Run, key: str, label: str, caption: str) -> Iterator[tuple[str, str]]:
    lines = {site: _values(run, key, site) for site in run.sites}
    lines = {site: points for site, points in lines.items() if points}
    mean = _values(run, key, None)
    if lines or mean:
        yield curves(f"curve-{key}", lines, mean, label=label), caption


def _figures(run: Run) -> Iterator[tuple[str, str]]:
    primary = measures_of(run.task).primary
    scores = {
        each.name: {
            site: result.metrics[primary.key]
            for site, result in each.sites.items()
            if primary.key in result.metrics
        }
        for each in [run, *run.baselines]
    }
    scores = {name: found for name, found in scores.items() if found}
    if scores and len(run.sites) <= MOST_DOTS:
        yield "sites", site_dots("dots", scores, label=f"test {primary.label}")
    found = {site: result.confusion for site, result in run.sites.items() if result.confusion is not None}
    bins = {site: matrix.reliability for site, matrix in found.items() if matrix.reliability}
    if bins:
        yield "reliability", reliability("reliability", bins, pooled(bins.values()))
    affinity = next((entry.affinity for entry in reversed(run.rounds) if entry.affinity), None)
    if affinity and len(affinity) <= MOST_DOTS:
        yield "affinity", affinity_map("affinity", affinity)
    entropy = [(entry.number, entry.entropy) for entry in run.rounds if entry.entropy is not None]
    if len(entropy) > 1:
        yield "entropy", curves("entropy", {}, entropy, label="entropy of the affinity")


def _values(run: Run, name: str, site: str | None) -> list[tuple[int, float]]:
    """(round, value) of a site, or of the mean: a metric of the received tensors, or the training loss."""
    points = []
    for entry in run.rounds:
        if site is None:
            value = entry.loss if name == LOSS.key else entry.mean.get(name)
        elif site in entry.sites:
            report = entry.sites[site]
            value = report.loss if name == LOSS.key else report.metrics.get(name)
        else:
            continue
        if value is not None:
            points.append((entry.number, value))
    return points


def _matrices(run: Run) -> tuple[list[tuple[str, Confusion, list[MatrixRow]]], int]:
    """Per site its confusion matrix and the rows of it, and how many there is no room for."""
    found = {site: result.confusion for site, result in run.sites.items() if result.confusion is not None}
    fitting = {site: matrix for site, matrix in found.items() if len(matrix.classes) <= MOST_CLASSES}
    shown = list(fitting.items())[:MOST_DOTS]
    return [(site, matrix, matrix_rows(matrix)) for site, matrix in shown], len(found) - len(shown)


def _gallery(run: Run) -> tuple[list[tuple[str, str, list[tuple[Overlay, str]]]], int]:
    """Per site its pictures as data addresses, in turns over the sites until the file would grow too big."""
    chosen: dict[str, list[tuple[Overlay, str]]] = {}
    spent, left_out = 0, 0
    most = max((len(result.overlays) for result in run.sites.values()), default=0)
    for turn in range(most):
        for site, result in run.sites.items():
            if turn >= len(result.overlays):
                continue
            overlay = result.overlays[turn]
            content = _compressed(overlay.path) if spent < PICTURE_BYTES else None
            if content is None:
                left_out += 1
                continue
            spent += len(content)
            address = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
            chosen.setdefault(site, []).append((overlay, address))
    gallery = [(site, run.sites[site].annotation, chosen[site]) for site in run.sites if site in chosen]
    return gallery, left_out


def _compressed(path: Path) -> bytes | None:
    """A panel as WebP, a fifth of the PNG's bytes; None where it cannot be read."""
    try:
        with Image.open(path) as picture:
            return _webp(picture)
    except (OSError, ValueError):
        return None


def _webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
