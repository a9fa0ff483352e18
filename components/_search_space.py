"""What a sweep may try: the settings of a search file, checked against the configuration that they are for."""

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from shortlist import ShortlistError
from shortlist.components._config import Config, parse

if TYPE_CHECKING:
    import keras_tuner

ValueOf = Callable[[str, Mapping[str, Any]], Any]
"""From a setting's name and settings that differ from the shipped ones, to the value that the setting then has."""


class Setting(Config):
    """One table of a search file.

    Args:
      type: "float", "int", "bool" or "choice".
      range: of a number, both ends included.
      step: of a number: the distance of its values, or with `log` their ratio; any value of the range if left out.
      log: draw the logarithm uniformly. The range must lie above 0.
      choices: the values of a choice: numbers, text or lists; "none" for a setting that is left empty.
      condition: other settings of the file by name, with the values that they must have for this one to matter.
    """

    type: Literal["float", "int", "bool", "choice"]
    range: tuple[float, float] | None = None
    step: float | None = pydantic.Field(None, gt=0)
    log: bool = False
    choices: tuple[Any, ...] = ()
    condition: dict[str, list[Any]] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _belongs_together(self) -> "Setting":
        number = self.type in ("float", "int")
        if number != (self.range is not None):
            rule = "needs a `range`" if number else "takes no `range`"
            raise ValueError(f"`type` {self.type} {rule}. Received: range={self.range}.")
        if self.range and not self.range[0] < self.range[1]:
            raise ValueError(
                f"`range` must go from a number to a larger one. Received: {list(self.range)}, an empty one."
            )
        if self.range and self.log and self.range[0] <= 0:
            raise ValueError(f"`range` must lie above 0 where `log` is true. Received: {list(self.range)}.")
        if self.range and self.type == "int" and any(end != int(end) for end in self.range):
            raise ValueError(f"`range` of an int must have whole ends. Received: {list(self.range)}.")
        if self.step is not None and self.log and self.step <= 1:
            raise ValueError(f"`step` is a ratio where `log` is true, so it must be above 1. Received: {self.step:g}.")
        if self.step is not None and self.type == "int" and self.step != int(self.step):
            raise ValueError(f"`step` of an int must be whole. Received: {self.step:g}.")
        if not number and (self.step is not None or self.log):
            raise ValueError(f"`step` and `log` belong to a number. Received: type {self.type}.")
        if (self.type == "choice") != bool(self.choices):
            rule = "needs `choices`" if self.type == "choice" else "takes no `choices`"
            raise ValueError(f"`type` {self.type} {rule}. Received: choices={list(self.choices)}.")
        if len({json.dumps(c) for c in self.choices}) < len(self.choices):
            raise ValueError(f"`choices` must differ. Received: {list(self.choices)}.")
        return self

    def samples(self) -> list[Any]:
        """Values that stand for all of them: the ends of a range and one inside, or every choice."""
        if self.range is None:
            return [False, True] if self.type == "bool" else [_plain(c) for c in self.choices]
        low, high = self.range
        if self.type == "int":
            return [int(low), int(high)]
        return [low, low + (high - low) / math.pi, high]  # which is never a whole number

    def holds(self, value: Any) -> bool:
        """Whether `value` is one that a trial may have."""
        if self.range is None:
            return any(_same(value, sample) for sample in self.samples())
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.range[0] <= value <= self.range[1] and (self.type == "float" or value == int(value))

    def nearest(self, value: Any) -> Any:
        """The value itself if a trial may have it; else the end of the range beside it, or the first choice."""
        if self.holds(value):
            return value
        if self.range is None or not isinstance(value, int | float):
            return self.samples()[0]
        end = min(max(value, self.range[0]), self.range[1])
        return int(end) if self.type == "int" else end


@dataclass(frozen=True)
class SearchSpace:
    """Settings by name, those that others depend on first, and the values with which the search begins: the shipped
    ones, or the nearest that may be tried."""

    settings: Mapping[str, Setting]
    defaults: Mapping[str, Any]

    def hyperparameters(self) -> "keras_tuner.HyperParameters":
        """The space as KerasTuner's oracles take it."""
        import keras_tuner
        from keras_tuner.engine import hyperparameters as types
        from keras_tuner.src.engine.conditions import Parent  # a `conditional_scope` takes no setting of two conditions

        space: list[types.HyperParameter] = []
        for name, setting in self.settings.items():
            common = {
                "name": name,
                "default": _on_step(setting, _encode(setting, self.defaults[name])),
                "conditions": [
                    Parent(parent, [_encode(self.settings[parent], value) for value in values])
                    for parent, values in setting.condition.items()
                ],
            }
            steps = {"step": setting.step, "sampling": "log" if setting.log else "linear"}
            if setting.type == "bool":
                space.append(types.Boolean(**common))
            elif setting.type == "choice":
                space.append(types.Choice(values=[_encode(setting, c) for c in setting.choices], **common))
            elif setting.type == "int":
                first, last = map(int, setting.range or ())
                space.append(types.Int(min_value=first, max_value=last, **steps, **common))
            else:
                low, high = _with_end(setting)
                space.append(types.Float(min_value=low, max_value=high, **steps, **common))
        hp = keras_tuner.HyperParameters()
        hp.merge(space)
        return hp

    def decode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a trial, from the oracle's values.

        Left out are KerasTuner's own, such as `tuner/epochs`, and those whose condition isn't met: on its way between
        processes it gives some of them a value.
        """
        found: dict[str, Any] = {}
        for name, setting in self.settings.items():
            met = all(
                parent in found and any(_same(found[parent], value) for value in allowed)
                for parent, allowed in setting.condition.items()
            )
            if name in values and met:
                found[name] = self._decode(name, values[name])
        return found

    def _decode(self, name: str, value: Any) -> Any:
        setting, default = self.settings[name], self.defaults[name]
        if setting.type == "float" and setting.range:
            # Six digits are as good as all, and what a person reads in a table, a file and a trial's name.
            low, high = setting.range
            return default if _close(value, default) else min(max(float(f"{value:.6g}"), low), high)
        return json.loads(value) if _as_text(setting) else value


def parse_space(values: Mapping[str, Any], value_of: ValueOf, where: str, fixed: Collection[str] = ()) -> SearchSpace:
    """Reads a search file and holds it against the configuration.

    Args:
      values: the file's tables by name.
      value_of: builds the configuration; it refuses what doesn't fit.
      where: the file, for the messages.
      fixed: settings that are given and not searched; a setting whose condition they don't meet is left out with them.

    Raises:
      ShortlistError: for a setting that does not exist (with the nearest name), an empty range, a type or a value that
        does not fit, a condition on a setting that is not there, and if nothing is left to search.
    """
    settings, defaults = {}, {}
    for name, table in values.items():
        if not isinstance(table, Mapping):
            raise ShortlistError(f"`{name}` of {where} must be a table with a type. Received: {table!r}.")
        defaults[name] = value_of(name, {})
        try:
            setting = parse(Setting, table, f"the table `{name}`")
        except ShortlistError as error:
            raise ShortlistError(f"`{name}` of {where}: {error}") from None
        for sample in setting.samples():
            fitted = value_of(name, {name: sample})
            if not _same(fitted, sample):
                raise ShortlistError(
                    f"`type` of `{name}` of {where} must fit the setting, whose shipped value is {defaults[name]!r}. "
                    f"Received: type {setting.type}, which turns {sample!r} into {fitted!r}."
                )
        if name not in fixed:
            defaults[name] = setting.nearest(defaults[name])
        settings[name] = setting
    for name, setting in settings.items():
        for parent, allowed in setting.condition.items():
            if parent not in settings or parent == name:
                raise ShortlistError(
                    f"`condition` of `{name}` of {where} must name another setting of it. Received: {parent!r}."
                )
            if not all(settings[parent].holds(value) for value in allowed) or not allowed:
                raise ShortlistError(
                    f"`condition` of `{name}` of {where} must list values that `{parent}` can have. "
                    f"Received: {allowed}."
                )
    searched: dict[str, Setting] = {}
    for name, setting in _parents_first(settings, where).items():
        gone = [parent for parent in setting.condition if parent not in searched]
        met = all(
            parent in fixed and any(_same(defaults[parent], value) for value in setting.condition[parent])
            for parent in gone
        )
        if name not in fixed and met:
            rest = {parent: values for parent, values in setting.condition.items() if parent in searched}
            searched[name] = setting.model_copy(update={"condition": rest})
    if not searched:
        raise ShortlistError(
            f"`--set` and `--config` must leave a setting to search. Received: all of {', '.join(settings) or 'none'}."
        )
    return SearchSpace(searched, defaults)


def _parents_first(settings: Mapping[str, Setting], where: str) -> dict[str, Setting]:
    ordered: dict[str, Setting] = {}
    while len(ordered) < len(settings):
        ready = [n for n, s in settings.items() if n not in ordered and all(p in ordered for p in s.condition)]
        if not ready:
            rest = ", ".join(n for n in settings if n not in ordered)
            raise ShortlistError(f"`condition` of {where} must not go round in a circle. Received: {rest}.")
        ordered |= {name: settings[name] for name in ready}
    return ordered


def _plain(value: Any) -> Any:
    """As TOML and JSON have it, but for "none", which TOML cannot say otherwise."""
    return list(value) if isinstance(value, tuple) else None if value == "none" else value


def _same(a: Any, b: Any) -> bool:
    a, b = _plain(a), _plain(b)
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _as_text(setting: Setting) -> bool:
    """Whether the choices go to the oracle as JSON: it takes whole numbers, or others, or text, but never a mixture."""
    kinds = {bool if isinstance(c, bool) else type(c) for c in setting.choices}
    plain = len(kinds) == 1 and kinds <= {int, float, str} and "none" not in setting.choices
    return setting.type == "choice" and not plain


def _encode(setting: Setting, value: Any) -> Any:
    if setting.type == "choice":
        value = next(choice for choice in setting.choices if _same(choice, value))
        return json.dumps(_plain(value)) if _as_text(setting) else value
    return int(value) if setting.type == "int" else float(value) if setting.type == "float" else value


def _close(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=1e-6)


def _on_step(setting: Setting, value: Any) -> Any:
    """As the steps have it, if one of them is the same but for rounding: a grid would try both."""
    if setting.type != "float" or setting.step is None or setting.range is None:
        return value
    low = setting.range[0]
    if setting.log:
        near = low * math.pow(setting.step, round(math.log(value / low, setting.step)))
    else:
        near = low + round((value - low) / setting.step) * setting.step
    return near if _close(near, value) else value


def _with_end(setting: Setting) -> tuple[float, float]:
    """The range, whose end is a step too where it is one but for rounding: KerasTuner would leave 1.0 out of tenths."""
    low, high = setting.range or (0.0, 0.0)
    if setting.step is None or setting.log:
        return low, high
    return low, low + (math.floor((high - low) / setting.step + 1e-6) + 0.5) * setting.step
