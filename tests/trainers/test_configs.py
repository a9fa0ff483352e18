"""The shipped settings stand twice: where a trainer is used from Python, and in its TOML file. They are the same."""

import importlib

import pytest

from shortlist.components._config import parse
from shortlist.trainers.two_stage import defaults, model_names


@pytest.mark.parametrize("model", model_names())
def test_a_config_without_arguments_is_the_shipped_file(model: str) -> None:
    config = importlib.import_module(f"shortlist.trainers.{model}").Config
    assert defaults(model)  # a file without settings would prove nothing
    assert config() == parse(config, defaults(model))
