"""Settings that are wrong: one line each, with the name, the rule, what was received and the nearest that exists."""

from typing import Literal

import pydantic
import pytest

from shortlist import ShortlistError
from shortlist.components._config import Config, parse


class Inner(Config):
    embedding_dim: int = pydantic.Field(64, ge=1)
    l2: float = 0.1


class Outer(Config):
    seed: int = 0
    strategy: Literal["time", "random"] = "time"
    inner: Inner = Inner()
    maybe: Inner | None = None
    sources: dict[str, Inner] = pydantic.Field(default_factory=dict)
    quota: int | dict[str, int] = 3

    @pydantic.field_validator("seed")
    @classmethod
    def _even(cls, seed: int) -> int:
        if seed % 2:
            raise ValueError(f"must be even. Received: {seed}.")
        return seed


def test_good_values_give_a_frozen_config() -> None:
    config = parse(Outer, {"inner": {"embedding_dim": "8"}, "sources": {"a": {}}})
    assert (config.inner.embedding_dim, config.inner.l2, config.sources["a"].embedding_dim) == (8, 0.1, 64)
    with pytest.raises(pydantic.ValidationError):
        config.seed = 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sead": 1}, "`sead` is not a setting of run.toml. Did you mean `seed`?"),
        ({"zzz": 1}, "`zzz` is not a setting of run.toml. Known: inner, maybe, quota, seed, sources, strategy."),
        (
            {"inner": {"embeding_dim": 1}},
            "`inner.embeding_dim` is not a setting of run.toml. Did you mean `embedding_dim`?",
        ),
        ({"inner": {"seed": 1}}, "`inner.seed` is not a setting of run.toml. Known: embedding_dim, l2."),
        ({"maybe": {"ll2": 1}}, "`maybe.ll2` is not a setting of run.toml. Did you mean `l2`?"),
        (
            {"sources": {"wals": {"embedding_dims": 1}}},
            "`sources.wals.embedding_dims` is not a setting of run.toml. Did you mean `embedding_dim`?",
        ),
        (
            {"inner": {"embedding_dim": 0}},
            "`inner.embedding_dim` of run.toml: Input should be greater than or equal to 1. Received: 0.",
        ),
        (
            {"sources": {"a": {"l2": "x"}}},
            "`sources.a.l2` of run.toml: Input should be a valid number, unable to parse string as a number. "
            "Received: 'x'.",
        ),
        ({"inner": {"l2": float("inf")}}, "`inner.l2` of run.toml: Input should be a finite number. Received: inf."),
        ({"strategy": "tame"}, "`strategy` of run.toml: Input should be 'time' or 'random'. Received: 'tame'."),
        ({"seed": 3}, "`seed`: must be even. Received: 3."),
        (
            {"quota": "many"},
            "`quota` of run.toml: Input should be a valid integer, unable to parse string as an integer. "
            "Received: 'many'.",
        ),
        (
            {"quota": {"wals": "many"}},
            "`quota.wals` of run.toml: Input should be a valid integer, unable to parse string as an integer. "
            "Received: 'many'.",
        ),
        ({"inner": 5}, "`inner` of run.toml: Input should be a valid dictionary or instance of Inner. Received: 5."),
        ([1], "run.toml: Input should be a valid dictionary or instance of Outer. Received: [1]."),
        (
            {"strategy": "a\nb"},
            r"`strategy` of run.toml: Input should be 'time' or 'random'. Received: 'a\nb'.",
        ),
    ],
)
def test_bad_values_are_one_line(values: object, message: str) -> None:
    with pytest.raises(ShortlistError) as error:
        parse(Outer, values, "run.toml")
    assert str(error.value) == message
    assert "\n" not in message


def test_a_missing_setting_is_named() -> None:
    class Needy(Config):
        inner: dict[str, Inner]

    class Name(Config):
        given: str

    class Whole(Config):
        parts: dict[str, Name]

    for cls, values, name in ((Needy, {}, "inner"), (Whole, {"parts": {"a": {}}}, "parts.a.given")):
        with pytest.raises(ShortlistError) as error:
            parse(cls, values)
        assert str(error.value) == f"`{name}` of the configuration: Field required. Received: {{}}."
