"""Options that take several words: `--images a.png b.png`, as a shell makes of `--images *.png`."""

from __future__ import annotations

from collections.abc import Sequence

import click
from typer.core import TyperGroup

__all__ = ["SpreadingGroup", "spread"]


class SpreadingGroup(TyperGroup):
    """A group in which `--images` and `--data` take several words, in its own options and below."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Spreads before click looks at the words."""
        return super().parse_args(ctx, spread(args, ("--images", "--data")))


def spread(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Repeats an option of `names` before every further word, up to the next option."""
    out: list[str] = []
    current: str | None = None  # the option that a word belongs to
    bare = False  # and whether it has none yet
    for word in words:
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            current = name if name in names else None
            bare = current is not None and not equals
        elif current is not None and not bare:
            out.append(current)
        else:
            bare = False
        out.append(word)
    return out
