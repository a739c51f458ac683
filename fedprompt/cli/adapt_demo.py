"""`fedprompt adapt demo`: phantom hospitals train prompts, an unseen one takes and adapts them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedprompt.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

    from fedprompt.adaptation.adapter import Adapter
    from fedprompt.adaptation.comparison import Labelled, Seen
    from fedprompt.adaptation.network import Network
    from fedprompt.report.adaptation import Content

__all__ = ["Demo", "demo", "run_demo"]

HOSPITALS = ("ashford", "brookside", "cedarhill", "dunmore")
UNSEEN = "ashford"
CAMERA = {"warmth": 0.3, "haze": 0.55, "unevenness": 0.6, "direction": 0.6}  # what changed in it
METHOD = "low-frequency"
SOURCE, SHARED, ADAPTED = "source", "shared prompts", "with adaptation"


@dataclass(frozen=True)
class Demo:
    """How large the demonstration is.

    Attributes:
        seed: Of hospitals, study and shift.
        size: Side of the images in pixels.
        rounds: Of the study.
        limit: At most so many cases per site and split; None: as many as the phantoms have.
        batches: How many times as many patients as a phantom hospital has come to the unseen site.
    """

    seed: int = 0
    size: int = 128
    rounds: int = 15
    limit: int | None = None
    batches: int = 2


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the study, the stream and report.html; must be new.")],
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of hospitals, study and camera.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json on standard output.")] = False,
) -> None:
    """Train prompts over three phantom hospitals and adapt them to a fourth, whose camera has changed.

    Takes one to two minutes on two cores. The report shows the backbone alone, the shared prompts, and the
    shared prompts with adaptation.
    """
    summary = run_demo(out, Demo(seed=seed))
    if as_json:
        print(json.dumps(summary))
        return
    _show(summary)
    print(f"report: {out / 'report.html'}", file=sys.stderr)


def run_demo(out: Path, settings: Demo) -> dict[str, Any]:
    """Writes study, stream, `summary.json` and `report.html` into a new folder; returns the summary.

    Args:
        out: Made where it is missing.
        settings: How large.

    Raises:
        ConfigurationError: The folder has files in it, or cannot be made.
    """
    _claim(out)
    _write_hospitals(out, settings)
    _train(out, settings)

    import torch

    from fedprompt.adaptation.adapter import Adapter
    from fedprompt.adaptation.bundle import load_bundle
    from fedprompt.adaptation.comparison import labelled_images
    from fedprompt.artifacts import write_atomic, write_json
    from fedprompt.report.adaptation import render_adaptation

    torch.set_num_threads(1)  # as in the study: these images are too small to gain from more
    network, _ = load_bundle(out / "study")
    training = _training_images(out, network)
    _collect(out, network, training)
    network, statistics = load_bundle(out / "study")  # as the unseen site takes it
    before, after = (
        [
            image
            for folder in sorted((out / "unseen" / place).iterdir())
            for image in labelled_images(folder, network)
        ]
        for place in ("before", "after")
    )
    runs = {
        SOURCE: _streamed(SOURCE, Adapter(_backbone_alone(network), "none"), after),
        SHARED: _streamed(SHARED, Adapter(network, "none"), after),
        ADAPTED: _streamed(ADAPTED, Adapter(network, METHOD, statistics=statistics), after),
    }
    unchanged = {
        SHARED: _streamed("camera as it was", Adapter(network, "none"), before),
        ADAPTED: _streamed(
            "camera as it was, with adaptation", Adapter(network, METHOD, statistics=statistics), before
        ),
    }
    images = [image for site in training.values() for image in site]
    content = _content(settings, network, images, after, runs, unchanged)
    summary = _summary(settings, network, content, unchanged)
    write_json(out / "summary.json", summary, durable=False)
    write_atomic(out / "report.html", render_adaptation(content).encode(errors="replace"), durable=False)
    return summary


def _claim(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        state = "one with files in it" if out.is_dir() else "a file"
        raise ConfigurationError(f"{out}: expected a new or empty folder, got {state}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{out}: the folder cannot be made ({error.strerror})") from None


def _write_hospitals(out: Path, settings: Demo) -> None:
    """`sites/` takes part; `unseen/` has a folder per batch of patients, `before` and `after` the change."""
    from fedprompt.data.phantoms import write_phantoms
    from fedprompt.data.shifts import CameraShift, write_shifted_site

    others = [name for name in HOSPITALS if name != UNSEEN]
    write_phantoms(out / "sites", settings.seed, size=settings.size, limit=settings.limit, sites=others)
    for batch in range(settings.batches):
        scratch = out / "unseen" / "before"
        write_phantoms(
            scratch, settings.seed + 1000 * batch, size=settings.size, limit=settings.limit, sites=[UNSEEN]
        )
        place = scratch / f"{UNSEEN}-{batch + 1}"
        (scratch / UNSEEN).rename(place)
        write_shifted_site(
            place, out / "unseen" / "after" / place.name, CameraShift(**CAMERA), settings.seed + batch
        )


def _train(out: Path, settings: Demo) -> None:
    from fedprompt.cli.plan import new_plan
    from fedprompt.cli.progress import Progress
    from fedprompt.cli.simulation import simulate_study
    from fedprompt.config import study_from_mapping

    study = study_from_mapping(
        {
            "name": "adapt-demo",
            "seed": settings.seed,
            "image": {"size": settings.size},
            "rounds": {"count": settings.rounds},
        },
        "adapt demo",
    )
    plan = new_plan(out / "study", study, out / "sites", [], "inprocess")
    with Progress(phases=1) as progress:
        simulate_study(plan, progress)


def _training_images(out: Path, network: Network) -> dict[str, list[Tensor]]:
    """Train and validation images of every site of the study, as the network sees them."""
    from fedprompt.adaptation.stream_files import network_input
    from fedprompt.data.cases import read_cases
    from fedprompt.data.images import read_picture

    return {
        folder.name: [
            network_input(read_picture(case.image), network)
            for case in read_cases(folder)
            if case.split != "test"
        ]
        for folder in sorted((out / "sites").iterdir())
    }


def _collect(out: Path, network: Network, training: dict[str, list[Tensor]]) -> None:
    """Every site collects statistics of its own images; what goes into the bundle is merged."""
    from fedprompt.adaptation.bundle import STATISTICS, bundle_folder
    from fedprompt.adaptation.statistics import collect_statistics, merged

    collected = merged([collect_statistics(network, images) for images in training.values()])
    collected.save(bundle_folder(out / "study") / STATISTICS)


def _backbone_alone(network: Network) -> Network:
    """The frozen backbone of a bundle's network without prompts."""
    from fedprompt.adaptation.bundle import PromptedLogits

    assert isinstance(network.module, PromptedLogits)  # noqa: S101 - what `load_bundle` gives
    return replace(network, module=network.module.model.backbone, fingerprint="")


def _streamed(name: str, adapter: Adapter, images: list[Labelled]) -> list[Seen]:
    from fedprompt.adaptation.comparison import watched_stream
    from fedprompt.cli.stream_progress import StreamProgress

    with StreamProgress(name, len(images)) as progress:
        return watched_stream(adapter, images, progress.step)


def _content(
    settings: Demo,
    network: Network,
    training: list[Tensor],
    images: list[Labelled],
    runs: dict[str, list[Seen]],
    unchanged: dict[str, list[Seen]],
) -> Content:
    from fedprompt.adaptation.comparison import examples_of, line_of, spectrum_of
    from fedprompt.prompts.low_frequency import window_radius
    from fedprompt.report.adaptation import Content

    assert network.size is not None  # noqa: S101 - what `load_bundle` gives
    sites = [name for name in HOSPITALS if name != UNSEEN]
    as_it_was = [_mean_dice(unchanged[name]) for name in (SHARED, ADAPTED)]
    source, shared, adapted = (runs[name] for name in (SOURCE, SHARED, ADAPTED))
    return Content(
        title="Adaptation at an unseen site",
        lead=f"{sites[0].title()}, {sites[1].title()} and {sites[2].title()} trained prompts on a frozen "
        f"backbone together. {UNSEEN.title()} took no part: it takes the shared prompts and adapts them to "
        "its images, one at a time, without annotations and without sending anything.",
        note=f"Phantom hospitals. {UNSEEN.title()}'s camera was changed: warm light from one side, and much "
        "of the contrast lost. With the camera as it was the shared prompts reach a Dice of "
        f"{as_it_was[0]:.3f}, with adaptation {as_it_was[1]:.3f}.",
        classes=network.classes,
        lines=(
            line_of(SOURCE, "the frozen backbone alone", source, adapts=False),
            line_of(SHARED, "as the study trained them", shared, adapts=False),
            line_of(ADAPTED, "shared prompts, adapted to every image", adapted, adapts=True),
        ),
        examples=examples_of(images, runs),
        spectrum=spectrum_of(training, images, adapted, window_radius(network.size)),
        facts={
            "study": f"fedlppa over {', '.join(sites)}, {settings.rounds} rounds (study/report.html)",
            "source statistics": f"of {len(training)} images, merged over {len(sites)} sites",
            "method": METHOD,
            "camera": ", ".join(f"{name} {value:g}" for name, value in CAMERA.items()),
            "seed": str(settings.seed),
            "network": network.fingerprint,
            "device": f"{network.device.type}, one thread",
        },
    )


def _summary(
    settings: Demo, network: Network, content: Content, unchanged: dict[str, list[Seen]]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for before, line in zip((None, *content.lines), content.lines, strict=False):
        entry: dict[str, Any] = {"dice": line.mean, "seconds": sum(line.seconds) / len(line.seconds)}
        if before is not None:
            changes = line.changes(before)
            entry |= {"change": float(changes.mean()), "worst_change": float(changes.min())}
        if line.accepted:
            entry["accepted"] = sum(line.accepted) / len(line.accepted)
        found[line.name] = entry
    return {
        "schema": 1,
        "seed": settings.seed,
        "sites": [name for name in HOSPITALS if name != UNSEEN],
        "unseen": UNSEEN,
        "images": len(content.lines[0].dice),
        "camera": CAMERA,
        "results": found,
        "camera_as_it_was": {name: {"dice": _mean_dice(seen)} for name, seen in unchanged.items()},
        "network": network.fingerprint,
    }


def _mean_dice(seen: list[Seen]) -> float:
    return sum(each.dice for each in seen) / len(seen)


def _show(summary: dict[str, Any]) -> None:
    """The comparison as a table on standard error."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{summary['images']} images of {summary['unseen']}, whose camera has changed")
    for column in ("", "Dice", "change", "worst image", "adapted", "ms per image"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in summary["results"].items():
        changes = [f"{row[key]:+.3f}" if key in row else "" for key in ("change", "worst_change")]
        accepted = f"{100 * row['accepted']:.0f} %" if "accepted" in row else ""
        table.add_row(name, f"{row['dice']:.3f}", *changes, accepted, f"{1000 * row['seconds']:.0f}")
    Console(stderr=True).print(table)
