"""A run as one HTML file that asks the network for nothing: style, figures and pictures are inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from fedprompt import __version__
from fedprompt.report import numerals
from fedprompt.report.figures import affinity_map, curves, site_dots
from fedprompt.report.pictures import TILES, class_colours
from fedprompt.report.reader import Overlay, Run

__all__ = ["render"]

MOST_COLUMNS = 8  # sites with a column of their own in the comparison
MOST_DOTS = 24  # sites with a row in the dot plot and in the affinity map
PICTURE_BYTES = 3_000_000  # all pictures of a report together
METRICS = {"dice": "Dice", "hd95": "HD95", "assd": "ASSD"}


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    text: str
    best: bool = False


def render(run: Run) -> str:
    """The report of a run as HTML text. Equal runs give equal text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": numerals.count, "metric": numerals.metric, "dash": _dash}
    columns, rows = _comparison([run, *run.baselines])
    gallery, left_out = _gallery(run)
    return environment.get_template("report.html.j2").render(
        run=run,
        version=__version__,
        lead=_lead(run),
        key_figures=list(_key_figures(run)),
        columns=columns,
        rows=rows,
        figures={name: Markup(svg) for name, svg in _figures(run)},  # noqa: S704 - drawn here
        site_columns=_site_columns(run),
        site_rows=list(_site_rows(run)),
        gallery=gallery,
        left_out=left_out,
        tiles=TILES,
        colours=class_colours(run.classes) if run.classes else {},
        entropy=_last([entry.entropy for entry in run.rounds]),
    )


def _dash(value: Any) -> str:
    return numerals.DASH if value is None or value == "" else str(value)


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


def _key_figures(run: Run) -> Iterator[tuple[str, str, str]]:
    """Number, what it is, and what it stands beside."""
    dice = run.mean.get("dice")
    if dice is None:
        dice = _last([entry.mean.get("dice") for entry in run.rounds])
        yield numerals.metric("dice", dice), "mean validation Dice", "in the last round; no test yet"
    else:
        yield numerals.metric("dice", dice), "mean test Dice", f"over {len(run.sites)} sites"
        for baseline in run.baselines:
            other = baseline.mean.get("dice")
            gained = None if other is None else dice - other
            yield numerals.difference(gained), f"Dice against {baseline.name}", numerals.metric("dice", other)
    trained = [run.parameters.get(scope) for scope in ("shared", "site", "personal")]
    total = sum(part for part in trained if part is not None) if run.parameters else None
    backbone = run.parameters.get("backbone")
    of = f"{numerals.count(total)} of {numerals.count(backbone)} parameters"
    yield numerals.share(total, backbone), "trained, of the backbone", of
    in_all = "" if run.bytes_total is None else f", {numerals.size(run.bytes_total)} in all"
    yield numerals.size(run.up), "up per site and round", f"{numerals.size(run.down)} down{in_all}"
    in_all = "" if run.seconds is None else f"{numerals.duration(run.seconds)} in all"
    yield numerals.duration(run.seconds_per_round), "per round", in_all


def _comparison(runs: Sequence[Run]) -> tuple[list[tuple[str, str]], list[tuple[Run, list[Cell]]]]:
    """Columns (heading, note) and per run the cells; the best of every column is marked."""
    sites = list(dict.fromkeys(site for run in runs for site in run.sites))
    shown = sites if len(sites) <= MOST_COLUMNS else []
    columns = [("Dice", "mean"), ("HD95", "mean"), ("ASSD", "mean")]
    columns += [(site, "Dice") for site in shown] or [("worst", "Dice")]
    columns.append(("bytes", "per site and round"))
    values: list[list[tuple[str, float | None]]] = []
    for run in runs:
        row = [(name, run.mean.get(name)) for name in METRICS]
        dice = {site: result.metrics.get("dice") for site, result in run.sites.items()}
        row += [("dice", dice.get(site)) for site in shown]
        if not shown:
            row.append(("dice", min((value for value in dice.values() if value is not None), default=None)))
        known = [value for value in (run.up, run.down) if value is not None]
        row.append(("bytes", sum(known) if known else None))
        values.append(row)
    rows = []
    for run, row in zip(runs, values, strict=True):
        cells = []
        for column, (name, value) in enumerate(row):
            rivals = [other[column][1] for other in values]
            best = name != "bytes" and len(runs) > 1 and _is_best(name, value, rivals)
            text = numerals.size(value) if name == "bytes" else numerals.metric(name, value)
            cells.append(Cell(text, best))
        rows.append((run, cells))
    return columns, rows


def _is_best(name: str, value: float | None, rivals: Sequence[float | None]) -> bool:
    """Whether no rival reads as better, and at least one as worse."""
    known = [rival for rival in rivals if rival is not None]
    if value is None:
        return False
    best = min(known) if name.startswith(numerals.LOWER_IS_BETTER) else max(known)
    shown = {numerals.metric(name, rival) for rival in known}
    return len(shown) > 1 and numerals.metric(name, value) == numerals.metric(name, best)


def _figures(run: Run) -> Iterator[tuple[str, str]]:
    for name, label in (("dice", "validation Dice"), ("loss", "training loss")):
        lines = {site: _values(run, name, site) for site in run.sites}
        lines = {site: points for site, points in lines.items() if points}
        mean = _values(run, name, None)
        if lines or mean:
            yield name, curves(f"curve-{name}", lines, mean, label=label)
    scores = {
        each.name: {
            site: result.metrics["dice"] for site, result in each.sites.items() if "dice" in result.metrics
        }
        for each in [run, *run.baselines]
    }
    scores = {name: dice for name, dice in scores.items() if dice}
    if scores and len(run.sites) <= MOST_DOTS:
        yield "sites", site_dots("dots", scores, label="test Dice")
    affinity = next((entry.affinity for entry in reversed(run.rounds) if entry.affinity), None)
    if affinity and len(affinity) <= MOST_DOTS:
        yield "affinity", affinity_map("affinity", affinity)
    entropy = [(entry.number, entry.entropy) for entry in run.rounds if entry.entropy is not None]
    if len(entropy) > 1:
        yield "entropy", curves("entropy", {}, entropy, label="entropy of the affinity")


def _values(run: Run, name: str, site: str | None) -> list[tuple[int, float]]:
    """(round, value) of a site, or of the mean: Dice of the received tensors, or the training loss."""
    points = []
    for entry in run.rounds:
        if site is None:
            value = entry.loss if name == "loss" else entry.mean.get(name)
        elif site in entry.sites:
            report = entry.sites[site]
            value = report.loss if name == "loss" else report.metrics.get(name)
        else:
            continue
        if value is not None:
            points.append((entry.number, value))
    return points


def _site_columns(run: Run) -> list[tuple[str, list[str]]]:
    """Per metric its heading and keys: the mean and, for several classes, each of them."""
    classes = list(run.classes[1:]) if len(run.classes) > 2 else []
    found = {name for result in run.sites.values() for name in result.metrics}
    return [
        (heading, [metric, *(f"{metric}_{name}" for name in classes if f"{metric}_{name}" in found)])
        for metric, heading in METRICS.items()
    ]


def _site_rows(run: Run) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Site, annotation, cases per split, metrics."""
    keys = [key for _, names in _site_columns(run) for key in names]
    for site, result in run.sites.items():
        cases = [numerals.count(result.cases.get(split)) for split in ("train", "val", "test")]
        yield (
            site,
            result.annotation or numerals.DASH,
            cases,
            [numerals.metric(key, result.metrics.get(key)) for key in keys],
        )


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
    buffer = io.BytesIO()
    try:
        with Image.open(path) as picture:
            picture.save(buffer, "WEBP", quality=85)
    except (OSError, ValueError):
        return None
    return buffer.getvalue()


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
