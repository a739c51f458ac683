"""The site file: owned by the hospital."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedprompt.config.tables import SITE_ID, Annotation, Folder, Kind, Table

__all__ = ["Site"]

Millimetres = Annotated[float, Field(gt=0)]


class Site(Table):
    """One hospital taking part."""

    id: Annotated[str, Field(pattern=SITE_ID)] = Field(description="Name of the site in every study")
    annotation: Kind = Field(Annotation.FULL, description="How the masks of this site are drawn")
    data: Folder = Field(Path(), description="Folder with cases.csv; relative to this file")
    feature_cache: Folder | None = Field(
        None,
        description="Folder for features of this site's images, kept over restarts; relative to this file",
    )
    feature_cache_gib: Annotated[float, Field(gt=0)] = Field(
        20.0, description="Limit of that folder in GiB; what was used longest ago is deleted first"
    )
    pixel_spacing: Annotated[tuple[Millimetres, Millimetres], Field(strict=False)] | None = Field(
        None, description="Row and column spacing in mm for images that carry none"
    )
