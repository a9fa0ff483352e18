"""The base of every configuration, and the one way to turn text into one."""

import difflib
import importlib
import json
import re
import sys
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

import pydantic

from shortlist import ShortlistError

tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


class Config(pydantic.BaseModel):
    """A frozen set of settings. Unknown names are refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


C = TypeVar("C", bound=pydantic.BaseModel)


def parse(cls: type[C], values: Mapping[str, Any], where: str = "the configuration") -> C:
    """Builds `cls` from plain values.

    Raises:
      ShortlistError: one line that names the first setting that is wrong, the rule, what was received and, for an
        unknown name, the nearest one that exists.
    """
    try:
        return cls.model_validate(values)
    except pydantic.ValidationError as error:
        errors = [e for e in error.errors() if e["loc"][:1] == error.errors()[0]["loc"][:1]]
        deepest = max(errors, key=lambda e: len(e["loc"]))  # of a union's members, the one that fits best
        raise ShortlistError(_explain(cls, deepest, _path(deepest, values), where)) from None


def unknown(name: str, known: Collection[str], where: str) -> str:
    """What is said of a setting that does not exist: the nearest one that does, or all of them."""
    return f"`{name}` is not a setting of {where}. {nearest(name.rpartition('.')[2], sorted(known))}"


def nearest(name: str, known: Collection[str]) -> str:
    """The known name that is most like a wrong one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known)}."


def toml_lines(settings: Mapping[str, Any]) -> list[str]:
    """Plain settings as lines of TOML, a table in one line; one that is None is left out."""
    return [f"{_toml_key(name)} = {_toml(value)}" for name, value in settings.items() if value is not None]


def _toml_key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(toml_lines(value))} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _path(error: Any, values: Any) -> list[str]:
    """Where the error is in `values`, without the names by which pydantic tells the members of a union apart."""
    path = []
    for number, part in enumerate(error["loc"], 1):
        absent = error["type"] == "missing" and number == len(error["loc"])
        if absent or isinstance(part, int) or (isinstance(values, Mapping) and part in values):
            path.append(str(part))
            values = None if absent else values[part]
    return path


def _explain(cls: type[pydantic.BaseModel], error: Any, path: list[str], where: str) -> str:
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        return unknown(name, _fields_at(cls, path[:-1]), where)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and ("Received" in message or "is not a setting" in message):
        return message if message.startswith("`") else f"`{name}`: {message}" if name else message
    place = f"`{name}` of {where}" if name else where
    return f"{place}: {message}. Received: {error['input']!r}."


def _fields_at(cls: type[pydantic.BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = cls.model_fields.get(part)  # none for a key of a dict
        cls = next(_models(field.annotation), cls) if field else cls
    return list(cls.model_fields)


def _models(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)
