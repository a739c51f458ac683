"""The `fedprompt` command: a lazy face over the sub-commands; the one place where errors become exit codes.

Nothing imports this package. A sub-command's module is imported when that sub-command runs, so `--help` costs
little more than typer itself.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from fedprompt import __version__
from fedprompt.errors import FedpromptError

__all__ = ["main"]

INTERRUPTED = 130

# name: module, attribute (a typer app or a function with typer options), line in `fedprompt --help`
COMMANDS: dict[str, tuple[str, str, str]] = {
    "simulate": ("fedprompt.cli.simulate", "simulate", "Run a study over simulated sites on this machine."),
    "report": ("fedprompt.cli.report", "report", "Write a run directory as one HTML file."),
    "study": ("fedprompt.cli.study", "app", "Write and check study files."),
    "backbone": ("fedprompt.cli.backbone", "app", "List, inspect, fetch and pre-train frozen backbones."),
    "adapt": ("fedprompt.cli.adapt", "app", "Adapt to a site's images without labels; serve it."),
}


class LazyGroup(TyperGroup):
    """A group of stand-ins that carry name and help line; the real command is imported when it runs."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: click.Command(name, help=line) for name, (_, _, line) in COMMANDS.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of `COMMANDS`."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Imports the command that is about to run."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name and command else command, rest


def _load(name: str) -> click.Command:
    module, attribute, _ = COMMANDS[name]
    target = getattr(import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        target, function = typer.Typer(add_completion=False), target
        target.command(name)(function)
    command = typer.main.get_command(target)
    command.name = name
    return command


# Plain help here: rich help alone costs more than importing typer and rich.
app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    suggest_commands=False,  # click does it
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fedprompt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Federated prompt learning on frozen medical foundation backbones."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code.

    Args:
        arguments: Words after `fedprompt`; those of this process by default.

    Every error ends as one line on standard error, with `--json` also as one object on standard output:
    `{"error": {"code": ..., "message": ..., "exit_code": ...}}`. `FEDPROMPT_DEBUG=1` adds the traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        status = typer.main.get_command(app).main(words, prog_name="fedprompt", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    except click.ClickException as error:
        return _failed(_usage(error), "usage", error.exit_code, as_json)
    except FedpromptError as error:
        return _ended(_failed(str(error), error.code, error.exit_code, as_json))
    except (KeyboardInterrupt, click.Abort):
        status = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: a sentence instead of a traceback
        sentence = f"{type(error).__name__}: {error} (FEDPROMPT_DEBUG=1 shows where)"
        return _failed(sentence, "internal", 5, as_json)
    if status == INTERRUPTED:  # click turns Ctrl-C into this status
        return _ended(_failed("interrupted", "interrupted", INTERRUPTED, as_json))
    return status if isinstance(status, int) else 0


def _ended(status: int) -> int:
    """Ends at once where a simulated site is still at work: torch aborts a process that ends under it."""
    if any(thread.name.startswith("site-worker-") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context is not None else ""
    return error.format_message().rstrip(".") + hint


def _failed(message: str, code: str, status: int, as_json: bool) -> int:
    if os.environ.get("FEDPROMPT_DEBUG") == "1" and sys.exc_info()[0] is not None:
        traceback.print_exc()
    line = " ".join(message.splitlines())
    print(f"error: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"code": code, "message": line, "exit_code": status}}))
    return status
