"""`fedprompt backbone`: pre-train and inspect frozen backbones."""

from __future__ import annotations

import contextlib
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fedprompt.errors import ConfigurationError

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Pre-train and inspect frozen backbones."""


@app.command()
def pretrain(
    name: Annotated[str, typer.Option(help="embedded-unet or mobilenet-v2.")],
    out: Annotated[Path, typer.Option(help="New folder for the backbone.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with cases.csv to train on; synthetic shapes without it.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="mobilenet-v2: transformers folder or hub id of the encoder.")
    ] = None,
    classes: Annotated[
        str, typer.Option(help="Class names, background first, with commas between them.")
    ] = "background,outer,inner",
    size: Annotated[int | None, typer.Option(min=32, help="Image side in pixels, a multiple of 32.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    views: Annotated[
        int | None, typer.Option(min=1, help="Cached augmented views per case, where the encoder is frozen.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the provenance as JSON.")] = False,
) -> None:
    """Train a backbone on public data or synthetic shapes, before it is frozen."""
    from fedprompt.backbones.pretraining import pretrain as train
    from fedprompt.backbones.pretraining import recipe_for

    names = [part.strip() for part in classes.split(",")]
    if len(names) < 2 or len(set(names)) != len(names) or not all(names):
        raise ConfigurationError(f"--classes: expected two or more different names, got {classes!r}")
    if size is not None and size % 32:
        raise ConfigurationError(f"--size: expected a multiple of 32, got {size}")
    if learning_rate is not None and not 0 < learning_rate < 1:
        raise ConfigurationError(f"--learning-rate: expected a number between 0 and 1, got {learning_rate}")
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigurationError(f"--device: expected auto, cpu or cuda, got {device!r}")
    _claim(out)
    recipe = recipe_for(
        name,
        size=size,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        views=views,
        seed=seed,
    )
    source = None if encoder is None else Path(encoder) if Path(encoder).exists() else encoder
    command = _command(name=name, out=out, data=data, encoder=encoder, classes=classes, recipe=asdict(recipe))
    try:
        with _Display() as display:
            provenance = train(
                name,
                out,
                recipe,
                classes=names,
                data=data,
                encoder=source,
                device=device,
                command=command,
                progress=display.show,
            )
    except BaseException:
        with contextlib.suppress(OSError):
            out.rmdir()  # made above; stays if there is something in it
        raise
    if as_json:
        print(json.dumps({"folder": str(out), **_description(out), "provenance": provenance}))
        return
    test = provenance["test"]
    dice = "no test cases" if test is None else f"test Dice {test['dice']:.3f}"
    print(f"{out}: {name}, validation Dice {provenance['validation']['dice']:.3f}, {dice}")


@app.command()
def show(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of a backbone; the embedded one without it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Check a backbone's files and show its fingerprint, geometry and where its weights come from."""
    from fedprompt.backbones.storage import EMBEDDED, load_folder

    place = folder or EMBEDDED / "embedded-unet"
    backbone = load_folder(place)
    stored = {"folder": str(place), **_description(place)}
    if as_json:
        print(json.dumps({**stored, "geometry": asdict(backbone.geometry)}))
        return
    print(f"{stored['name']}: {stored['parameters']:,} parameters, {backbone.classes} classes")
    print(f"fingerprint  {stored['fingerprint']}")
    print(f"strides      {' '.join(map(str, backbone.geometry.strides))}")
    print(f"channels     {' '.join(map(str, backbone.geometry.channels))}")
    print(f"decoder      {' '.join(map(str, backbone.geometry.decoder_channels))}")
    for key in ("command", "classes", "validation", "test"):
        print(f"{key:<12} {stored['provenance'].get(key)}")


def _description(folder: Path) -> dict[str, Any]:
    from fedprompt.artifacts import read_json
    from fedprompt.backbones.storage import DESCRIPTION

    return dict(read_json(folder / DESCRIPTION))


def _command(**options: Any) -> str:
    """The command line that does the same again; folders by their names alone, for the record may travel."""
    recipe = options.pop("recipe")
    options |= {key: recipe[key] for key in ("size", "steps", "batch_size", "learning_rate", "views", "seed")}
    words = ["fedprompt", "backbone", "pretrain"]
    for key, value in options.items():
        if value is not None:
            plain = Path(value).name if key in ("out", "data", "encoder") else str(value)
            words += [f"--{key.replace('_', '-')}", plain]
    return shlex.join(words)


class _Display:
    """A progress bar on standard error."""

    def __enter__(self) -> _Display:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("starting", total=None)
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Shows a phase and how far it is."""
        self._bar.update(self._task, description=what, completed=done, total=total)


def _claim(out: Path) -> None:
    """Makes the new folder before the training, so that no training is lost for the want of one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        taken = any(out.iterdir())
    except OSError as error:
        raise ConfigurationError(f"--out: {out} cannot be made ({error.strerror})") from None
    if taken:
        raise ConfigurationError(f"--out: expected a new or empty folder, got {out} with files in it")
