"""What all tables of the two files have in common."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["SITE_ID", "Annotation", "Folder", "Kind", "Table"]

SITE_ID = r"^[a-z0-9][a-z0-9-]{0,62}$"


class Annotation(StrEnum):
    """How the masks of a site are drawn."""

    FULL = "full"
    SCRIBBLE = "scribble"
    NOISY_SCRIBBLE = "noisy-scribble"
    POINT = "point"
    BLOCK = "block"
    BOX = "box"


class Table(BaseModel):
    """Base of all tables: immutable, keys in kebab-case or snake_case, nothing unknown, no type converted."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        populate_by_name=True,
        alias_generator=lambda name: name.replace("_", "-"),
        allow_inf_nan=False,
    )


# TOML has strings and arrays where these are meant.
Kind = Annotated[Annotation, Field(strict=False)]
Folder = Annotated[Path, Field(strict=False)]
