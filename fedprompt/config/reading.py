"""Study and site files read and validated; paths in them become absolute."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from fedprompt.config.errors import parsed
from fedprompt.config.site import Site
from fedprompt.config.study import Study
from fedprompt.errors import ConfigurationError

__all__ = ["load_site", "load_study", "study_from_mapping"]


def load_study(path: Path) -> Study:
    """Reads a study file; paths in it become absolute.

    Raises:
        ConfigurationError: The file is missing, is no TOML, or has a key or value that cannot be.
    """
    study = parsed(Study, _read(path), str(path))
    if study.backbone.folder is None:
        return study
    folder = (path.parent / study.backbone.folder).resolve()
    return study.model_copy(update={"backbone": study.backbone.model_copy(update={"folder": folder})})


def load_site(path: Path) -> Site:
    """Reads a site file; its folders become absolute. Raises `ConfigurationError` like `load_study`."""
    site = parsed(Site, _read(path), str(path))
    folders = {"data": site.data, "feature_cache": site.feature_cache}
    absolute = {name: (path.parent / folder).resolve() for name, folder in folders.items() if folder}
    return site.model_copy(update=absolute)


def study_from_mapping(values: dict[str, Any], where: str) -> Study:
    """Validates a study from plain values; `where` names their origin in errors."""
    return parsed(Study, values, where)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not a TOML file ({error})") from None
