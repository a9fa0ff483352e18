"""The base of every configuration, and the one way to turn text into one."""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from shortlist import ShortlistError


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
        first = error.errors()[0]
        raise ShortlistError(_explain(cls, first, where)) from None


def _explain(cls: type[pydantic.BaseModel], error: Any, where: str) -> str:
    path = [str(part) for part in error["loc"]]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = _fields_at(cls, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(sorted(known))}."
        return f"`{name}` is not a setting of {where}. {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and ("Received" in message or "is not a setting" in message):
        return message if message.startswith("`") else f"`{name}`: {message}" if name else message
    return f"`{name}` of {where}: {message}. Received: {error['input']!r}."


def _fields_at(cls: type[pydantic.BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = cls.model_fields.get(part)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)):
            break
        cls = annotation
    return list(cls.model_fields)
