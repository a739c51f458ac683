"""`fedprompt adapt`: adapt a frozen network to a stream of images, without labels and without training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from click.core import ParameterSource

from fedprompt.cli.adapt_demo import demo
from fedprompt.cli.adapt_tools import collect, forget, merge
from fedprompt.cli.serve import serve
from fedprompt.cli.spreading import SpreadingGroup
from fedprompt.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from fedprompt.adaptation.network import Network
    from fedprompt.adaptation.state import StreamState
    from fedprompt.adaptation.statistics import SourceStatistics
    from fedprompt.adaptation.streams import Stream

__all__ = ["app"]

app = typer.Typer(
    cls=SpreadingGroup,
    invoke_without_command=True,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_METHODS = "none, batch-norm, reference, low-frequency, multi-scale or tent"
_KEY = Path(".config/fedprompt/site.key")  # in the home folder
_REASONS = 5  # that are told in the terminal


@app.callback()
def adapt(
    context: typer.Context,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompt bundle of a study, or its run directory.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="TOML file that describes a network of your own.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER|FILE...", help="Images in their order; of a folder, all by name."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for masks/, results.csv, summary.json and drift.html.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder that keeps, encrypted, what a stream goes on with.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            envvar="FEDPROMPT_SITE_KEY",
            help=f"Key file of the site, made where it is missing; default: ~/{_KEY}.",
        ),
    ] = None,
    stream: Annotated[str, typer.Option(help="Name of the stream, such as that of a scanner.")] = "default",
    method: Annotated[str, typer.Option(help=f"How to adapt: {_METHODS}.")] = "low-frequency",
    statistics: Annotated[
        Path | None, typer.Option(help="Source statistics of `collect`; by default those of the bundle.")
    ] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="Folder of the bundle's backbone, where it is elsewhere now.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Folder with a mask per image of the same name, to tell Dice.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Adapt a frozen network to a stream of images, one after the other, and write their masks.

    Each image is adapted by itself where that is safe, else it gets the mask of the network as it is. With
    --state, a stream that was stopped goes on with the same command, and later images go on where it was.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if (prompts is None) == (model is None):
        raise ConfigurationError("expected --prompts BUNDLE or --model FILE, got neither or both")
    if not images:
        raise ConfigurationError("--images: expected a folder or image files, got nothing")
    if out is None:
        raise ConfigurationError("--out: expected a folder to write to, got nothing")
    if model is not None and backbone is not None:
        raise ConfigurationError("--backbone: expected it with --prompts alone, as a model file has its own")
    if state is None:
        for name in ("key", "stream"):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise ConfigurationError(f"--{name}: expected --state FOLDER beside it, got none")

    from fedprompt.adaptation.adapter import Adapter
    from fedprompt.adaptation.methods import METHODS
    from fedprompt.adaptation.stream_files import find_images
    from fedprompt.adaptation.streams import Stream

    if method not in METHODS:
        raise ConfigurationError(f"--method: expected one of {', '.join(METHODS)}, got {method!r}")
    files = find_images(images)
    network, known = _network(prompts, model, backbone, statistics)
    adapter = Adapter(network, method, statistics=known)
    kept = None if state is None else _state(state, key or Path.home() / _KEY, stream)
    try:
        started = Stream(files, adapter, out, state=kept, truth=truth)
        _run(started, resumable=kept is not None)
        summary = started.finish()
        if summary["images"] and summary["without_mask"] == summary["images"]:
            first = next(iter(summary["passed_through"]), "no reason is known")
            raise DataError(f"{out}: none of {summary['images']} images got a mask ({first})")
    finally:
        if kept is not None:
            kept.close()
    if as_json:
        print(json.dumps({"out": str(out), "method": method, **summary}))
    else:
        for line in _told(summary, out):
            print(line)


app.command()(collect)
app.command()(merge)
app.command()(forget)
app.command()(serve)
app.command()(demo)


def _refuse_options(context: typer.Context) -> None:
    """Options of the stream in front of a sub-command would be lost."""
    for name in context.params:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--json" if name == "as_json" else f"--{name}"
            raise ConfigurationError(
                f"{option}: expected options after the name of {context.invoked_subcommand}, got it before"
            )


def _network(
    prompts: Path | None, model: Path | None, backbone: Path | None, statistics: Path | None
) -> tuple[Network, SourceStatistics | None]:
    """The network, and source statistics where there are some."""
    from fedprompt.adaptation.statistics import SourceStatistics

    known: SourceStatistics | None = None
    if model is not None:
        from fedprompt.adaptation.model_file import load_network

        network = load_network(model)
    else:
        from fedprompt.adaptation.bundle import load_bundle

        assert prompts is not None  # noqa: S101 - for the type checker
        network, known = load_bundle(prompts, backbone=backbone)
    if statistics is not None:
        known = SourceStatistics.load(statistics, network.fingerprint)
    return network, known


def _state(folder: Path, key: Path, stream: str) -> StreamState:
    """The state of the stream, with a new key where the site has none and no state either."""
    from fedprompt.adaptation.state import StreamState
    from fedprompt.encryption import SiteKey

    if key.exists():
        secret = SiteKey.load(key)
    elif any(folder.glob("*.state")):
        raise ConfigurationError(f"{key}: no such file; expected the key of the states in {folder}")
    else:
        secret = SiteKey.create(key)
        print(f"made the site's key, {key}; without it, states cannot be read", file=sys.stderr)
    return StreamState(folder, secret, stream)


def _run(stream: Stream, *, resumable: bool) -> None:
    """Adapts the images that are left. Ctrl-C ends after the image that is at work."""
    from fedprompt.cli.interruption import Interruption
    from fedprompt.cli.stream_progress import StreamProgress

    whole = len(stream)
    adapted = 0
    with StreamProgress("adapting", whole) as progress, Interruption() as interruption:
        if stream.done:
            progress.say(f"{stream.done} images are done already, {whole} are left")
        for row in stream:
            adapted += row.accepted
            progress.step(f"{adapted} adapted")
            if interruption.wanted and len(stream):
                break
    if len(stream):
        how = "the same command goes on" if resumable else "without --state they begin anew, in another --out"
        print(f"{whole - len(stream)} of {whole} images are done; {how}", file=sys.stderr)
        raise KeyboardInterrupt


def _told(summary: dict[str, Any], out: Path) -> list[str]:
    """The summary for a reader."""
    images, adapted, lost = summary["images"], summary["adapted"], summary["without_mask"]
    lines = [f"{images} images: {adapted} adapted, {images - adapted - lost} not, {lost} without a mask"]
    reasons = summary["passed_through"]
    lines += [
        f"  {count} × {reason or 'no reason given'}" for reason, count in list(reasons.items())[:_REASONS]
    ]
    if len(reasons) > _REASONS:
        lines.append(f"  and {len(reasons) - _REASONS} more reasons, in results.csv")
    if summary["restarts"]:
        lines.append(f"the images changed: {summary['restarts']} × warm-up restarted")
    if summary["dice_before"] is not None:
        lines.append(
            f"mean Dice {summary['dice_before']:.4f} without adaptation, {summary['dice_after']:.4f} with; "
            f"worst change {summary['worst_change']:+.4f} ({summary['worst_image']})"
        )
    if summary["seconds"] is not None:
        lines.append(f"{summary['seconds']:.3f} seconds per image")
    return [*lines, f"wrote {out}: masks/, results.csv, summary.json, drift.html"]
