"""A federation folder: one subfolder per site, each with a table of cases and an optional `site.toml`."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from fedprompt.config import Site, Study, load_site
from fedprompt.data.cases import TABLE
from fedprompt.errors import ConfigurationError, DataError

__all__ = ["read_federation"]

SITE_FILE = "site.toml"


def read_federation(folder: Path, study: Study) -> list[Site]:
    """Reads the sites of a federation folder, sorted by id.

    A site without `site.toml` is named after its subfolder. An annotation kind that the study states for a
    site wins over the site's own.

    Raises:
        DataError: The folder or a site's table is missing, there is no site, or two have the same id.
        ConfigurationError: A site file is wrong, or the study names a site that does not exist.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / TABLE).exists():
        raise DataError(f"{folder}: expected a folder of site folders, got the folder of one site")
    found: dict[str, Path] = {}
    sites: list[Site] = []
    for subfolder in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
        if not (subfolder / SITE_FILE).exists() and not (subfolder / TABLE).exists():
            raise DataError(f"{subfolder / TABLE}: no such file; every site folder holds a {TABLE}")
        site = _read_site(subfolder)
        if site.id in found:
            raise DataError(f"{subfolder}: site id {site.id!r} is already used by {found[site.id]}")
        found[site.id] = subfolder
        sites.append(site)
    if not sites:
        raise DataError(f"{folder}: expected subfolders with a {TABLE}, got none")
    unknown = sorted(study.sites.keys() - found.keys())
    if unknown:
        raise ConfigurationError(
            f"sites.{unknown[0]}: no such site in {folder}; expected one of {', '.join(sorted(found))}"
        )
    return sorted((_as_studied(site, study) for site in sites), key=lambda site: site.id)


def _read_site(folder: Path) -> Site:
    if (folder / SITE_FILE).exists():
        site = load_site(folder / SITE_FILE)
    else:
        try:
            site = Site.model_validate({"id": folder.name, "data": folder.resolve()})
        except ValidationError:
            raise ConfigurationError(
                f"{folder}: expected a folder name of lower-case letters, digits and hyphens, or a "
                f"{SITE_FILE} with such an id, got {folder.name!r}"
            ) from None
    if not (site.data / TABLE).is_file():
        raise DataError(f"{site.data / TABLE}: no such file; every site folder holds a {TABLE}")
    return site


def _as_studied(site: Site, study: Study) -> Site:
    known = study.sites.get(site.id)
    if known is None or known.annotation is None:
        return site
    return site.model_copy(update={"annotation": known.annotation})
