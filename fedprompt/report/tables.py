"""The numbers of a report: key figures, comparison of strategies, table of sites, confusion matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedprompt.report import numerals
from fedprompt.report.measures import Measure, TaskMeasures, measures_of
from fedprompt.report.reader import Run
from fedprompt.report.site_files import Confusion

__all__ = [
    "Cell",
    "MatrixRow",
    "SiteColumn",
    "comparison",
    "key_figures",
    "matrix_rows",
    "site_columns",
    "site_rows",
]

MOST_COLUMNS = 8  # sites with a column of their own in the comparison


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class SiteColumn:
    """One column of the table of sites: a split or a measure, and of which class where it has several."""

    heading: str
    note: str
    key: str
    measure: Measure | None = None  # None: cases


@dataclass(frozen=True)
class MatrixRow:
    """The cases of one class: how many were taken for which, as counts and as percentages of the row."""

    truth: str
    cells: tuple[tuple[int, int], ...]
    right: str


def key_figures(run: Run) -> Iterator[tuple[str, str, str]]:
    """Number, what it is, and what it stands beside."""
    measures = measures_of(run.task)
    primary = measures.primary
    tested = any(measure.key in run.mean for measure in measures.headline)
    for measure in measures.headline:
        if tested:
            told = sum(measure.key in site.metrics for site in run.sites.values())
            count = f"{told} of {len(run.sites)}" if 0 < told < len(run.sites) else len(run.sites)
            value, beside = run.mean.get(measure.key), f"over {count} sites"
            yield measure.text(value), f"mean test {measure.label}", beside
        else:
            known = [entry.mean[measure.key] for entry in run.rounds if measure.key in entry.mean]
            value, beside = (
                (known[-1] if known else None),
                ("in the last round; no test cases" if run.finished else "in the last round; no test yet"),
            )
            yield measure.text(value), f"mean validation {measure.label}", beside
    for baseline in run.baselines if tested else ():
        ours, theirs = run.mean.get(primary.key), baseline.mean.get(primary.key)
        gained = None if ours is None or theirs is None else ours - theirs
        against = f"{primary.label} against {baseline.name}"
        yield numerals.difference(gained), against, primary.text(theirs)
    trained = [run.parameters.get(scope) for scope in ("shared", "site", "personal")]
    total = sum(part for part in trained if part is not None) if run.parameters else None
    backbone = run.parameters.get("backbone")
    of = f"{numerals.count(total)} of {numerals.count(backbone)} parameters"
    yield numerals.share(total, backbone), "trained, of the backbone", of
    in_all = "" if run.bytes_total is None else f", {numerals.size(run.bytes_total)} in all"
    yield numerals.size(run.up), "up per site and round", f"{numerals.size(run.down)} down{in_all}"
    in_all = "" if run.seconds is None else f"{numerals.duration(run.seconds)} in all"
    yield numerals.duration(run.seconds_per_round), "per round", in_all


def comparison(
    runs: Sequence[Run], measures: TaskMeasures
) -> tuple[list[tuple[str, str]], list[tuple[Run, list[Cell]]]]:
    """Columns (heading, note) and per run the cells; the best of every column is marked.

    Each site has a column of the primary measure; many sites have one of the worst of them.
    """
    primary = measures.primary
    sites = list(dict.fromkeys(site for run in runs for site in run.sites))
    shown = sites if len(sites) <= MOST_COLUMNS else []
    judges = [*measures.compared, *([primary] * (len(shown) or 1))]
    columns = [(measure.label, "mean") for measure in measures.compared]
    columns += [(site, primary.label) for site in shown] or [("worst", primary.label)]
    columns.append(("bytes", "per site and round"))
    values = [_values(run, measures, shown) for run in runs]
    rows = []
    for run, row in zip(runs, values, strict=True):
        cells = [
            Cell(measure.text(value), measure.is_best(value, [other[column] for other in values]))
            for column, (measure, value) in enumerate(zip(judges, row, strict=True))
        ]
        known = [value for value in (run.up, run.down) if value is not None]
        cells.append(Cell(numerals.size(sum(known) if known else None)))
        rows.append((run, cells))
    return columns, rows


def _values(run: Run, measures: TaskMeasures, sites: Sequence[str]) -> list[float | None]:
    """The means of a run, then the primary measure of the sites, or of the worst one without `sites`."""
    primary = measures.primary
    means = [run.mean.get(measure.key) for measure in measures.compared]
    found = {site: result.metrics.get(primary.key) for site, result in run.sites.items()}
    if sites:
        return means + [found.get(site) for site in sites]
    known = [value for value in found.values() if value is not None]
    worst = min if primary.better == "higher" else max
    return [*means, worst(known, default=None)]


def site_columns(run: Run) -> list[SiteColumn]:
    """Cases per split, train cases per class where the sites tell them, the measures, mean and per class."""
    measures = measures_of(run.task)
    columns = [SiteColumn(split, "", split) for split in ("train", "val", "test")]
    told = {name for result in run.sites.values() for name in result.labels}
    columns += [SiteColumn("train", name, name) for name in run.classes if name in told]
    classes = run.classes[measures.first_class :] if len(run.classes) > 2 else ()
    found = {name for result in run.sites.values() for name in result.metrics}
    for measure in measures.tested:
        own = [name for name in classes if f"{measure.key}_{name}" in found]
        columns.append(SiteColumn(measure.label, "mean" if own else "", measure.key, measure))
        columns += [SiteColumn(measure.label, name, f"{measure.key}_{name}", measure) for name in own]
    return columns


def site_rows(run: Run) -> Iterator[tuple[str, str, list[str]]]:
    """Site, annotation, and a text for each of `site_columns`."""
    columns = site_columns(run)
    for site, result in run.sites.items():
        texts = []
        for column in columns:
            if column.measure is not None:
                texts.append(column.measure.text(result.metrics.get(column.key)))
            else:
                amounts = result.labels if column.note else result.cases
                texts.append(numerals.count(amounts.get(column.key)))
        yield site, result.annotation or numerals.DASH, texts


def matrix_rows(confusion: Confusion) -> list[MatrixRow]:
    """A row per class of the truth."""
    rows = []
    for place, (truth, counts) in enumerate(zip(confusion.classes, confusion.counts, strict=True)):
        total = sum(counts)
        cells = tuple((count, round(100 * count / total) if total else 0) for count in counts)
        rows.append(MatrixRow(truth, cells, numerals.share(counts[place], total)))
    return rows
