"""`fedprompt backbone pretrain`: train a decoder, or a small network, before it is frozen for good."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from fedprompt.errors import ConfigurationError
from fedprompt.families import FAMILIES

__all__ = ["pretrain"]

_TRAINED = [entry for entry in FAMILIES.values() if "pretrain" in entry.origins]
_NAMES = ", ".join(entry.name for entry in _TRAINED)
_ENCODERS = ", ".join(entry.name for entry in _TRAINED if "transformers" in entry.origins)


def pretrain(
    name: Annotated[str, typer.Option(help=f"Family: {_NAMES}.")],
    out: Annotated[Path, typer.Option(help="New folder for the backbone.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with cases.csv to train on; synthetic shapes without it.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help=f"Folder or hub id of the encoder, which stays as it is. For {_ENCODERS}."),
    ] = None,
    classes: Annotated[
        str, typer.Option(help="Class names, background first, with commas between them.")
    ] = "background,outer,inner",
    size: Annotated[
        int | None, typer.Option(min=32, help="Image side in pixels; `show` tells what fits.")
    ] = None,
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
    """Train a decoder on a frozen encoder, or a small network as a whole."""
    from fedprompt.artifacts import read_json
    from fedprompt.backbones.pretraining import pretrain as train
    from fedprompt.backbones.recipes import recipe_for
    from fedprompt.backbones.storage import DESCRIPTION

    names = [part.strip() for part in classes.split(",")]
    if len(names) < 2 or len(set(names)) != len(names) or not all(names):
        raise ConfigurationError(f"--classes: expected two or more different names, got {classes!r}")
    if learning_rate is not None and not 0 < learning_rate < 1:
        raise ConfigurationError(f"--learning-rate: expected a number between 0 and 1, got {learning_rate}")
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigurationError(f"--device: expected auto, cpu or cuda, got {device!r}")
    recipe = recipe_for(
        name,
        size=size,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        views=views,
        seed=seed,
    )
    _claim(out)
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
        print(json.dumps({"folder": str(out), **read_json(out / DESCRIPTION)}))
        return
    test = provenance["test"]
    dice = "no test cases" if test is None else f"test Dice {test['dice']:.3f}"
    print(f"{out}: {name}, validation Dice {provenance['validation']['dice']:.3f}, {dice}")


def _command(**options: Any) -> str:
    """The command line that does the same again; folders by their names alone, for the record may travel."""
    recipe = options.pop("recipe")
    options |= {key: recipe[key] for key in ("size", "steps", "batch_size", "learning_rate", "views", "seed")}
    words = ["fedprompt", "backbone", "pretrain"]
    for key, value in options.items():
        if value is not None:
            travels = key not in ("out", "data", "encoder") or (key == "encoder" and not Path(value).exists())
            plain = str(value) if travels else Path(value).name
            words += [f"--{key.replace('_', '-')}", plain]
    return shlex.join(words)


class _Display:
    """Progress on standard error: a bar in a terminal, which it leaves clean; elsewhere some lines."""

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._told = ("", 0)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=None)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Shows a phase and how far it is; as lines, one per phase without steps and per tenth of others."""
        if self._bar is not None:
            self._bar.update(self._task, description=what, completed=done, total=total)
            return
        now = (what.split(",")[0], 10 * done // total)
        if now != self._told and (now[1] or total == 1):
            print(what if total == 1 else f"{what} ({done} of {total})", file=sys.stderr)
        self._told = now


def _claim(out: Path) -> None:
    """Makes the new folder before the training, so that no training is lost for the want of one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        taken = any(out.iterdir())
    except OSError as error:
        raise ConfigurationError(f"--out: {out} cannot be made ({error.strerror})") from None
    if taken:
        raise ConfigurationError(f"--out: expected a new or empty folder, got {out} with files in it")
