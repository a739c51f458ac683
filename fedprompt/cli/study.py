"""`fedprompt study`: write a commented study file, check one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedprompt.config import Study, load_study, study_from_mapping
from fedprompt.config.template import study_toml
from fedprompt.errors import ConfigurationError
from fedprompt.families import FAMILIES

__all__ = ["app"]

app = typer.Typer(
    add_completion=False, no_args_is_help=True, suggest_commands=False, help="Write and check study files."
)


@app.command()
def new(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to write it.")] = Path("study.toml"),
    task: Annotated[str, typer.Option(help="segmentation or classification.")] = "segmentation",
    backbone: Annotated[
        str, typer.Option(help="Backbone family; `fedprompt backbone list` shows them.")
    ] = "embedded-unet",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a study file with every setting, its meaning and its default."""
    from fedprompt.artifacts import write_atomic

    side = FAMILIES[backbone].side if backbone in FAMILIES else Study().image.size
    values = {"task": task, "backbone": {"name": backbone}, "image": {"size": side}}
    study = study_from_mapping(values, "study new")

    if file.is_dir():
        raise ConfigurationError(f"{file}: expected a file to write, got a folder")
    if file.exists() and not force:
        raise ConfigurationError(f"{file}: there is such a file; --force replaces it")
    try:
        write_atomic(file, study_toml(study).encode())
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be written ({error.strerror})") from error
    where = "" if "package" in FAMILIES[backbone].origins else " (backbone.folder or backbone.hub too)"
    print(f"wrote {file}; edit it{where}, then `fedprompt study check {file}`")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A study file.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Check a study file and show what the study is."""
    study = load_study(file)
    backbone = study.backbone
    if backbone.folder is None and backbone.hub is None and "package" not in FAMILIES[backbone.name].origins:
        raise ConfigurationError(
            f"{file}: backbone.folder: expected a folder, or a hub id in backbone.hub, as no weights of "
            f"{backbone.name} come with the package; got none"
        )
    if as_json:
        print(json.dumps({"study": study.to_mapping(), "digest": study.digest()}))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in summary(study).items():
        table.add_row(Text(name, style="bold"), Text(value))
    Console().print(table)


def summary(study: Study) -> dict[str, str]:
    """What the study is, in a few lines of label and text."""
    prompts = [name.replace("_", "-") for name, options in study.prompts if options is not None]
    fixed = study.backbone.fingerprint
    sites = [
        f"{site} ({options.annotation.value})" if options.annotation else site
        for site, options in study.sites.items()
    ]
    options = [
        f"{name.replace('_', '-')} {value:g}"
        if isinstance(value, float)
        else f"{name.replace('_', '-')} {value}"
        for name, value in study.strategy
        if name != "name"
    ]
    return {
        "study": f"{study.name}, seed {study.seed}",
        "task": f"{study.task}: {', '.join(study.classes)}",
        "images": f"{study.image.size} × {study.image.size} pixels",
        "backbone": ", ".join(
            str(part)
            for part in (
                study.backbone.name,
                study.backbone.folder or study.backbone.hub,
                f"{fixed[:12]}..." if fixed else None,
            )
            if part
        ),
        "prompts": ", ".join(prompts) or "none",
        "strategy": f"{study.strategy.name} ({', '.join(options)})",
        "rounds": f"{study.rounds.count}, quorum {study.rounds.quorum}, deadline {study.rounds.deadline:g} s",
        "training": f"{study.training.steps} steps of {study.training.batch_size} cases per round and site",
        "sites": ", ".join(sites) or "as the data folder has them",
        "digest": study.digest(),
    }
