"""A study as a commented TOML file: every table and key with its description, unset ones commented out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic.fields import FieldInfo

from fedprompt.config import (
    FedAdamOptions,
    FedAvgOptions,
    FedLPPAOptions,
    FedProxOptions,
    FullFinetuneOptions,
    LocalOptions,
    PromptSettings,
    StrategyBase,
    Study,
    StudySite,
    Table,
)

__all__ = ["study_toml"]

_STRATEGIES: tuple[type[StrategyBase], ...] = (
    FedLPPAOptions,
    FedAvgOptions,
    FedProxOptions,
    FedAdamOptions,
    LocalOptions,
    FullFinetuneOptions,
)


def study_toml(study: Study) -> str:
    """The text of a study file that parses back to exactly this study."""
    lines = [
        f"# {Study.__doc__}",
        "# Keys that begin with '#' show a default or an example.",
        "",
        *_keys(study),
    ]
    for name in Study.model_fields:
        table = getattr(study, name)
        if name == "sites":
            lines += ["", *_sites(study)]
        elif isinstance(table, PromptSettings):
            lines += ["", *_prompts(table)]
        elif isinstance(table, StrategyBase):
            lines += ["", *_strategy(table)]
        elif isinstance(table, Table):
            lines += ["", f"[{name}]", *_keys(table)]
    return "\n".join(lines) + "\n"


def _keys(table: Table, *, only: set[str] | None = None) -> Iterator[str]:
    """A comment and a line for every key of a table that is a plain value."""
    values = table.model_dump(mode="json")
    for name, field in type(table).model_fields.items():
        value = values[name]
        if isinstance(value, dict) or (only is not None and name not in only):
            continue
        yield f"# {_described(field)}"
        key = name.replace("_", "-")
        yield f'# {key} = "..."' if value is None else f"{key} = {_toml(value)}"


def _prompts(prompts: PromptSettings) -> Iterator[str]:
    yield "# Prompts on the frozen backbone: all where a file has no [prompts], else those that follow."
    yield "[prompts]"
    for name, field in PromptSettings.model_fields.items():
        options = getattr(prompts, name)
        heading = f"[prompts.{name.replace('_', '-')}]"
        yield ""
        yield f"# {field.description}"
        if options is None:
            yield f"# {heading}"
        else:
            yield heading
            yield from _keys(options)


def _strategy(chosen: StrategyBase) -> Iterator[str]:
    names = [kind.model_fields["name"].default for kind in _STRATEGIES]
    yield "[strategy]"
    yield f"# How rounds are aggregated: {', '.join(names)}"
    yield f"name = {_toml(chosen.model_dump()['name'])}"
    yield from _keys(chosen, only=set(type(chosen).model_fields) - {"name"})
    for kind in _STRATEGIES:
        own = set(kind.model_fields) - set(StrategyBase.model_fields) - {"name"}
        if own and not isinstance(chosen, kind):
            yield f"# With name = {_toml(kind.model_fields['name'].default)}:"
            for line in _keys(kind(), only=own):
                yield line if line.startswith("# ") else f"# {line}"


def _sites(study: Study) -> Iterator[str]:
    yield "# What the study knows of a site. Without a table, the site's own file holds."
    if not study.sites:
        yield "# [sites.paris]"
        yield f"# {_described(StudySite.model_fields['annotation'])}"
        yield '# annotation = "scribble"'
    for number, (site, options) in enumerate(study.sites.items()):
        if number:
            yield ""
        yield f"[sites.{site}]"
        if options.annotation is not None:
            yield f"annotation = {_toml(options.annotation.value)}"


def _described(field: FieldInfo) -> str:
    limits = _limits(field)
    return f"{field.description} ({limits})" if limits else str(field.description)


def _limits(field: FieldInfo) -> str:
    words = []
    for limit in field.metadata:
        match limit:
            case Ge(ge=bound):
                words.append(f"at least {bound}")
            case Gt(gt=bound):
                words.append(f"above {bound}")
            case Le(le=bound):
                words.append(f"at most {bound}")
            case Lt(lt=bound):
                words.append(f"below {bound}")
            case MultipleOf(multiple_of=step):
                words.append(f"a multiple of {step}")
            case MinLen(min_length=least):
                words.append(f"at least {least}")
            case MaxLen(max_length=most):
                words.append(f"at most {most}")
    return ", ".join(words)


def _toml(value: Any) -> str:
    """A string, number, truth value or array; JSON writes these as TOML does."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
