"""One sentence per mistake in a study or site file: the key, what was expected, what came."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedprompt.errors import ConfigurationError

__all__ = ["parsed", "sentences"]

_Model = TypeVar("_Model", bound=BaseModel)

MOST = 8  # mistakes told at once
LONGEST = 60  # characters of a value that are shown

_PATTERNS = {
    r"^[a-z0-9][a-z0-9-]{0,62}$": "up to 63 lower-case letters, digits and hyphens, no hyphen first",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits in lower case",
}
_WORDS = (  # pydantic's words, the words of a TOML file
    (r"^Input should be (a valid )?", ""),
    (r", unable to parse string as (an integer|a number)$", ""),
    (r"^(a )?finite number$", "a finite number"),
    (r"^integer$", "an integer"),
    (r"^(number|string)$", r"a \1"),
    (r"^boolean$", "true or false"),
    (r"^(dictionary|dictionary or (instance|object) .*|instance of \w+)$", "a table"),
    (r"^(tuple|list)$", "an array"),
    (r"^Input is not a valid path.*$", "a path"),
    (r"^greater than or equal to (.*)$", r"at least \1"),
    (r"^less than or equal to (.*)$", r"at most \1"),
    (r"^(greater than|less than|a multiple of) (.*)$", r"a number \1 \2"),
    (r"^a number a multiple of", "a multiple of"),
    (r"^Tuple should have (at least|at most) (\d+) items? after validation, not \d+$", r"\1 \2 values"),
)


def parsed(model: type[_Model], values: dict[str, Any], where: str) -> _Model:
    """The model of plain values; raises `ConfigurationError` that tells `where` and all mistakes."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {sentences(model, error.errors())}") from None


def sentences(model: type[BaseModel], errors: Sequence[ErrorDetails]) -> str:
    """All mistakes as clauses joined by semicolons, e.g. `rounds.count: expected an integer, got 'many'`.

    Args:
        model: The model that refused the values.
        errors: pydantic's `ValidationError.errors()`.
    """
    # A default that depends on another key cannot be made where that key is wrong; the key is told already.
    errors = [error for error in errors if error["type"] != "default_factory_not_called"]
    places = [error["loc"] for error in errors]
    clauses = [
        _clause(model, error)
        for error in errors
        if not any(len(p) > len(error["loc"]) > 0 and p[: len(error["loc"])] == error["loc"] for p in places)
    ]
    if len(clauses) > MOST:
        clauses[MOST:] = [f"and {len(clauses) - MOST} more"]
    return "; ".join(clauses)


def _clause(model: type[BaseModel], error: ErrorDetails) -> str:
    kind, came, context = error["type"], error["input"], error.get("ctx", {})
    place, table = _walk(model, error["loc"])
    key = ".".join(place)
    if kind == "extra_forbidden":
        return f"{key}: no such key{_instead(model, table, place)}, got {_shown(came)}"
    if kind == "missing":
        return f"{key}: expected a value, got nothing"
    if kind == "value_error":
        return f"{key}: {context['error']}" if key else str(context["error"])
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        field = context["discriminator"].strip("'")
        tags = list(_members(model.model_fields[place[0]]))
        came = came.get(field)
        return f"{key}.{field}: expected {_either(tags)}, got {_shown(came)}{_closest(came, tags)}"
    if kind == "string_pattern_mismatch":
        expected = _PATTERNS.get(context["pattern"], f"text like {context['pattern']}")
    else:
        expected = error["msg"]
        for pattern, words in _WORDS:
            expected = re.sub(pattern, words, expected)
    choices = re.findall(r"'([^']+)'", expected) if kind in ("literal_error", "enum") else []
    return f"{key}: expected {expected}, got {_shown(came)}{_closest(came, choices)}"


def _walk(
    model: type[BaseModel], location: Sequence[int | str]
) -> tuple[tuple[str, ...], type[BaseModel] | None]:
    """From pydantic's location: the key as it stands in the file, and the model of the table it stands in."""
    place: list[str] = []
    table: type[BaseModel] | None = None
    inner: Any = model
    for part in map(str, location):
        if part == "[key]":
            continue
        if isinstance(inner, dict):  # the members of a union by tag: this part is the tag, not a key
            inner = inner[part]
            continue
        place.append(part)
        table = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
        inner = _inner(inner, part)
    return tuple(place), table


def _inner(annotation: Any, key: str) -> Any:
    """The model, dictionary or tagged union behind a key of a table; None where there is none."""
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return None
    for name, field in annotation.model_fields.items():
        if key in (field.alias, name):
            return _members(field) or _plain(field.annotation)
    return None


def _members(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """The models among which a table such as `strategy` chooses, by tag; empty for other fields."""
    if field.discriminator is None:
        return {}
    tag = str(field.discriminator)
    return {get_args(m.model_fields[tag].annotation)[0]: m for m in get_args(field.annotation)}


def _plain(annotation: Any) -> Any:
    """`T` of `T | None` and of `Annotated[T, ...]`."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return _plain(get_args(annotation)[0])
    return annotation


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: _inner(model, name) for name, field in model.model_fields.items()}


def _instead(model: type[BaseModel], table: type[BaseModel] | None, place: tuple[str, ...]) -> str:
    """The key that was probably meant: spelt alike in the same table, or the same key in another table."""
    wanted = place[-1].replace("_", "-")
    own = list(_keys(table)) if table is not None else []
    if near := get_close_matches(wanted, own, n=1, cutoff=0.6):
        return f" (did you mean {near[0]!r}?)"
    for name, inner in _keys(model).items():
        tables = inner.values() if isinstance(inner, dict) else [inner]
        for other in tables:
            if isinstance(other, type) and issubclass(other, BaseModel) and wanted in _keys(other):
                if name == place[0]:  # a key of another strategy
                    continue
                return f" (did you mean '{name}.{wanted}'?)"
    return f" (expected {_either(own)})" if own else " (the table has none)"


def _closest(came: Any, choices: Sequence[str]) -> str:
    near = get_close_matches(str(came), choices, n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""


def _either(choices: Sequence[str]) -> str:
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}" if others else last


def _shown(value: Any) -> str:
    """A value in the words of TOML, cut where it is long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    text = repr(value) if isinstance(value, (str, int, float)) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
