"""What a sweep says of its first trial, told by its oracle alone: no trial is run."""

from pathlib import Path
from typing import Any

import pytest

from shortlist.components._config import parse
from shortlist.components._oracles import make_oracle
from shortlist.components.tuner import STATE
from shortlist.trainers.tuning import Sweep, SweepConfig
from shortlist.trainers.two_stage import load_config, model_names

SOURCES = list(load_config().sources)


def begins_as_shipped(workdir: Path, **values: Any) -> dict[str, bool]:
    """By stage, when its first trial has begun."""
    sweep = Sweep(parse(SweepConfig, values), workdir)
    for stage in sweep.stages:
        (folder := sweep.folder(stage)).mkdir()
        epochs = sweep.max_epochs(stage) if sweep.config.algorithm == "hyperband" else None
        space = sweep.spaces[stage.name].hyperparameters()
        oracle = make_oracle(sweep.config.algorithm, folder / STATE, stage.objective, space, 20, 0, epochs)
        oracle.create_trial("tuner0")
    return {stage.name: sweep.begins_as_shipped(stage) for stage in sweep.stages}


@pytest.mark.parametrize("target", [*model_names(), "two_stage"])
def test_the_first_trial_of_every_shipped_space_is_the_shipped_setting(target, tmp_path):
    given = {"data.source": "csv:x.csv", "seed": 3, "split.test": 0.2}
    stages = ("retrieval", "ranker") if target == "two_stage" else ("",)
    assert begins_as_shipped(tmp_path, target=target, given=given) == dict.fromkeys(stages, True)


OTHERS = {
    "a space without the shipped value": {
        "target": "wals",
        "space": {"embedding_dim": {"type": "choice", "choices": [2, 4]}},
    },
    "a given setting": {"target": "wals", "given": {"sources.wals.init_stddev": 0.2}},
    "the few epochs of Hyperband": {"target": "wals", "algorithm": "hyperband"},
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_first_trial_that_has_other_settings_is_known(case, tmp_path):
    assert begins_as_shipped(tmp_path, **OTHERS[case]) == {"": False}


@pytest.mark.parametrize(
    ("changed", "retrieval", "ranker"),
    [
        ({"given": {"sources.wals.l2": 0.02}}, False, True),
        ({"given": {"shortlist.size": 50}}, False, True),
        ({"file": {"ranker": {"l2": 0.01}}}, True, False),
        ({"file": {"sources": {**{name: {} for name in SOURCES}, "mine": {"model": "popularity"}}}}, False, True),
    ],
)
def test_each_stage_knows_what_it_began_with(changed, retrieval, ranker, tmp_path):
    found = begins_as_shipped(tmp_path, target="two_stage", **changed)
    assert found == {"retrieval": retrieval, "ranker": ranker}
