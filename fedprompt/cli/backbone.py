"""`fedprompt backbone`: list, inspect, fetch and pre-train frozen backbones."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedprompt.cli.pretrain import pretrain
from fedprompt.errors import ConfigurationError
from fedprompt.families import FAMILIES, Family, default_prompts

if TYPE_CHECKING:
    from fedprompt.backbones.base import Backbone

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)

_FOREIGN = ", ".join(entry.name for entry in FAMILIES.values() if "transformers" in entry.origins)

Name = Annotated[
    str | None,
    typer.Option(help=f"Family ({_FOREIGN}); without it, what config.json says."),
]


@app.callback()
def _group() -> None:
    """List, inspect, fetch and pre-train frozen backbones."""


@app.command("list")
def families(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the families: tasks, prompts that fit, where weights come from."""
    if as_json:
        print(json.dumps({"families": [_family(entry) for entry in FAMILIES.values()]}))
        return
    for entry in FAMILIES.values():
        print(f"{entry.name}: {entry.summary}")
        for task, prompts in _family(entry)["tasks"].items():
            marked = (name + "*" * (name in prompts["default"]) for name in prompts["prompts"])
            print(f"  {task:<16}{', '.join(marked)}")
        print(f"  {'weights from':<16}{', '.join(entry.origins)}")
    print("\n* in a study without [prompts]")


@app.command()
def show(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[FOLDER-OR-HUB-ID]",
            help="Folder of a backbone or of a transformers model, or a hub id; the embedded one without it.",
        ),
    ] = None,
    name: Name = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Check a backbone's files; show its fingerprint, shapes and memory."""
    from fedprompt.backbones.facts import facts
    from fedprompt.backbones.storage import EMBEDDED

    backbone, origin = _opened(source or str(EMBEDDED / "embedded-unet"), name)
    found = {**origin, **facts(backbone), "config": backbone.config()}
    if as_json:
        print(json.dumps(found))
        return
    for heading, text in _told(found):
        print(f"{heading:<15}{text}")


@app.command()
def fetch(
    source: Annotated[
        str, typer.Argument(metavar="HUB-ID", help="Hub id, or a folder of a transformers model.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the backbone.")],
    name: Name = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fetch a model of the hub into a folder that needs no network."""
    from fedprompt.backbones.base import fingerprint

    _check_free(out)
    backbone, origin = _opened(source, name)
    provenance = origin["provenance"] or {"folder": Path(source).resolve().name}
    words = ["fedprompt", "backbone", "fetch", origin["hub"] or Path(source).resolve().name]
    provenance = {"command": shlex.join([*words, "--out", out.name]), **provenance}
    _write(backbone, out, provenance)
    mark = fingerprint(backbone)
    if as_json:
        print(
            json.dumps(
                {
                    "folder": str(out),
                    "name": backbone.name,
                    "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
                    "fingerprint": mark,
                    "provenance": provenance,
                }
            )
        )
        return
    print(f"{out}: {backbone.name}, fingerprint {mark}")
    print("\n[backbone]")
    for key, value in {"name": backbone.name, "folder": out.as_posix(), "fingerprint": mark}.items():
        print(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    if backbone.classes is None and "pretrain" in FAMILIES[backbone.name].origins:
        print(
            f"# Segmentation needs a decoder too: fedprompt backbone pretrain --name {backbone.name} "
            f"--encoder {shlex.quote(str(out))} --out ... --data ... --classes ..."
        )


app.command()(pretrain)


def _family(entry: Family) -> dict[str, Any]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "origins": list(entry.origins),
        "tasks": {
            task: {
                "prompts": sorted(_key(prompt) for prompt in prompts),
                "default": [_key(prompt) for prompt in default_prompts(entry.name, task)],
            }
            for task, prompts in entry.prompts.items()
        },
    }


def _key(prompt: str) -> str:
    """A prompt as study files name it."""
    return prompt.replace("_", "-")


def _opened(text: str, name: str | None) -> tuple[Backbone, dict[str, Any]]:
    """The backbone of a folder or hub id, and where it comes from: folder, hub id, provenance."""
    from fedprompt.backbones.download import hub_folder, revision
    from fedprompt.backbones.storage import load_folder, provenance_of
    from fedprompt.families import family

    if name is not None:
        family(name)
    if Path(text).exists():
        folder = Path(text)
        backbone = load_folder(folder, name)
        return backbone, {"folder": text, "hub": None, "provenance": provenance_of(folder)}
    folder = hub_folder(text)
    backbone = load_folder(folder, name, text)
    origin = {"hub": text, "revision": revision(folder)}
    return backbone, {"folder": None, "hub": text, "provenance": origin}


def _told(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of `show`: heading and text."""
    from fedprompt.report.numerals import size

    geometry, images, memory = found["geometry"], found["preprocessing"], found["memory"]
    places = [
        f"{channels} channels at stride {stride}" if stride else f"one vector of {channels}"
        for channels, stride in zip(geometry["channels"], geometry["strides"], strict=True)
    ]
    decoder = " ".join(map(str, geometry["decoder_channels"]))
    sides = f"trained at {images['size']} pixels; sides are multiples of {geometry['multiple']}"
    if geometry["multiple"] == images["size"]:
        sides = f"{images['size']} pixels"
    cache = f"{size(memory['features'])} of features"
    if memory["hidden_state"] is not None:
        cache += f", or {size(memory['hidden_state'])} in front of a transformer block"
    lines = [
        (found["name"], found["summary"]),
        ("parameters", f"{found['parameters']:,}"),
        ("fingerprint", found["fingerprint"]),
        ("images", sides),
        ("mean, std", f"{_numbers(images['mean'])}, {_numbers(images['std'])}"),
        ("features", ", ".join(places)),
    ]
    if geometry["blocks"]:
        text = f"{geometry['blocks']} of width {geometry['width']} with {geometry['heads']} heads"
        lines.append(("blocks", text))
    prompts = FAMILIES[found["name"]].prompts
    own = "its own; classes come from class prompts"
    none = own if "class_prompts" in prompts.get("segmentation", ()) else "none"
    lines += [
        ("decoder", f"{decoder} channels, {found['classes']} classes" if decoder else none),
        *((task, ", ".join(sorted(p.replace("_", "-") for p in prompts[task]))) for task in prompts),
        (
            "weights",
            f"{size(memory['weights_float32'])} as fp32, {size(memory['weights_bfloat16'])} as bf16",
        ),
        ("cache", f"{cache}; per image of {images['size']} pixels, as fp32"),
    ]
    return lines + _origin(found["provenance"] or {})


def _origin(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of how the weights came about."""
    lines: list[tuple[str, str]] = []
    lines += [(key, str(provenance[key])) for key in ("command", "hub", "revision") if key in provenance]
    if provenance.get("classes"):
        lines.append(("classes", ", ".join(provenance["classes"])))
    for split in ("validation", "test"):
        dice = (provenance.get(split) or {}).get("dice")
        if dice is not None:
            lines.append((split, f"Dice {dice:.3f}"))
    return lines


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _check_free(out: Path) -> None:
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise ConfigurationError(f"--out: {out} cannot be read ({error.strerror})") from None
    if taken:
        state = "one with files in it" if out.is_dir() else "a file"
        raise ConfigurationError(f"--out: expected a new or empty folder, got {out}, {state}")


def _write(backbone: Backbone, out: Path, provenance: dict[str, Any]) -> None:
    """Saves a backbone, reads it back, and only then gives the folder its name."""
    from safetensors import SafetensorError

    from fedprompt.backbones.storage import load_folder, save_backbone

    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        save_backbone(backbone, partial, provenance)
        load_folder(partial)
        partial.replace(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"--out: {out} cannot be written ({reason})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
