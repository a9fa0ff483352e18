"""The oracles and the tuner on objectives that cost nothing: what is tried, what survives a kill, what is recorded."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from keras_tuner.engine.trial import Trial

from shortlist import ShortlistError
from shortlist.components._oracles import Durable, make_oracle
from shortlist.components._search_space import SearchSpace, parse_space
from shortlist.components.tuner import Outcome, Tuner, best_settings, read_trials

TABLES: dict[str, Any] = {
    "x": {"type": "float", "range": [0.0, 1.0]},
    "units": {"type": "choice", "choices": [[], [8], [8, 4]]},
    "drop": {"type": "float", "range": [0.0, 0.5], "step": 0.25, "condition": {"units": [[8], [8, 4]]}},
}
START = {"x": 0.5, "units": (), "drop": 0.0}


def space() -> SearchSpace:
    return parse_space(TABLES, lambda name, given: given.get(name, START[name]), "the space")


def objective(settings: dict[str, Any]) -> float:
    return -((settings["x"] - 0.3) ** 2) + 0.1 * len(settings["units"]) - settings.get("drop", 0.0)


def oracle(algorithm: str, folder: Path, trials: int | None = 12, **more: Any) -> Durable:
    folder.mkdir(exist_ok=True)
    return make_oracle(algorithm, folder / "oracle.json", "f", space().hyperparameters(), trials, 3, **more)


def end(found: Durable, trial: Trial) -> None:
    found.update_trial(trial.trial_id, {"f": objective(space().decode(trial.hyperparameters.values))})
    trial.status = "COMPLETED"
    found.end_trial(trial)


def run(algorithm: str, folder: Path, killed_after: int = 10**9) -> list[tuple[str, dict[str, Any]]]:
    """Every trial with its settings; the oracle is read from its file anew after every `killed_after` operations."""
    found, operations, tried = oracle(algorithm, folder), 0, []
    while True:
        trial = found.create_trial("tuner0")
        if trial.status == "STOPPED":
            return tried
        operations += 1
        if operations % killed_after == 0:
            found = oracle(algorithm, folder)
            again = found.create_trial("tuner0")  # the trial that it had is given to it again
            assert (again.trial_id, again.hyperparameters.values) == (trial.trial_id, trial.hyperparameters.values)
            trial = again
        end(found, trial)
        tried.append((trial.trial_id, space().decode(trial.hyperparameters.values)))
        operations += 1
        if operations % killed_after == 0:
            (folder / ".oracle.json.1.partial").write_text("{")  # killed in the middle of writing
            found = oracle(algorithm, folder)


@pytest.mark.parametrize("algorithm", ["random", "grid", "bayesian"])
@pytest.mark.parametrize("killed_after", [1, 2, 3, 7])
def test_a_kill_loses_nothing_and_repeats_nothing(algorithm, killed_after, tmp_path):
    whole = run(algorithm, tmp_path / "whole")
    assert run(algorithm, tmp_path / "killed", killed_after) == whole
    assert len({name for name, _ in whole}) == len(whole) == 12
    assert whole[0][1] == {"x": 0.5, "units": []}  # what the space begins with


def test_seeds_beside_each_other_draw_different_trials(tmp_path):
    drawn = []
    for seed in (0, 1, 2):
        found = make_oracle("random", tmp_path / f"{seed}.json", "f", space().hyperparameters(), 5, seed)
        values = []
        for _ in range(5):
            trial = found.create_trial("t")
            values.append(trial.hyperparameters.values["x"])
            end(found, trial)
        drawn += values[1:]
    assert len(set(drawn)) == len(drawn)


def test_no_trial_begins_after_the_deadline_and_more_can_be_asked_for(tmp_path):
    found = oracle("random", tmp_path)
    end(found, found.create_trial("t"))
    found.deadline = 0
    assert found.create_trial("t").status == "STOPPED"
    assert oracle("random", tmp_path, trials=1).create_trial("t").status == "STOPPED"
    assert oracle("random", tmp_path, trials=2).create_trial("t").status == "RUNNING"


def test_hyperband_has_the_brackets_of_its_paper_and_goes_on_with_the_better(tmp_path):
    found = oracle("hyperband", tmp_path, None, max_epochs=27, factor=3)
    trials = []
    while (trial := found.create_trial("t")).status != "STOPPED":
        end(found, trial)
        trials.append(trial)
    values = [t.hyperparameters.values for t in trials]
    counts = Counter((v["tuner/bracket"], v["tuner/initial_epoch"], v["tuner/epochs"]) for v in values)
    assert counts == {
        **{(3, 0, 1): 27, (3, 1, 3): 9, (3, 3, 9): 3, (3, 9, 27): 1},
        **{(2, 0, 3): 12, (2, 3, 9): 4, (2, 9, 27): 2},
        **{(1, 0, 9): 6, (1, 9, 27): 2, (0, 0, 27): 4},
    }
    by_id = {t.trial_id: t for t in trials}
    for v in values:
        if v["tuner/initial_epoch"]:
            parent = by_id[v["tuner/trial_id"]].hyperparameters.values
            assert parent["tuner/epochs"] == v["tuner/initial_epoch"]
            assert space().decode(parent) == space().decode(v)


def tuned(folder: Path, measure: Any, trials: int = 5, algorithm: str = "random", **more: Any) -> list[Any]:
    Tuner(oracle(algorithm, folder, trials, **more), measure, space(), folder).search()
    return read_trials(folder, space())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ShortlistError("`wals` scores items with NaN."), "`wals` scores items with NaN."),
        (MemoryError(), "MemoryError"),
        (KeyError("a bug"), "a bug"),
    ],
)
def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(error, message, tmp_path):
    def measure(settings: dict[str, Any], rungs: tuple[int, ...]) -> Outcome:
        if settings != {"x": 0.5, "units": []}:
            raise error
        return Outcome(0.25, epochs=4, stopped_early=True)

    first, *rest = tuned(tmp_path, measure)
    assert (first.status, first.objective, first.epochs) == ("early-stopped", 0.25, 4)
    assert [r.status for r in rest] == ["failed"] * 4
    assert all(message in r.message for r in rest)
    assert best_settings(tmp_path, space()) == ({"x": 0.5, "units": []}, None)


def test_an_objective_that_is_not_a_number_is_a_failure(tmp_path):
    assert {r.status for r in tuned(tmp_path, lambda settings, rungs: Outcome(math.nan))} == {"failed"}
    assert best_settings(tmp_path, space()) is None


def test_a_disk_that_cannot_be_written_ends_the_search_and_its_trial_is_not_lost(tmp_path):
    def full(settings: dict[str, Any], rungs: tuple[int, ...]) -> Outcome:
        raise ShortlistError("`workdir` x cannot be written") from OSError(28, "No space left on device")

    with pytest.raises(Exception, match="cannot be written"):
        tuned(tmp_path, full)
    records = tuned(tmp_path, lambda settings, rungs: Outcome(objective(settings)))
    assert [r.status for r in records] == ["completed"] * 5


def test_a_trial_that_takes_its_process_with_it_is_given_up_the_third_time(tmp_path):
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "0.json").write_text(json.dumps({"deaths": 2}))
    first, second = tuned(tmp_path, lambda settings, rungs: Outcome(1.0), trials=2)
    assert first.status == "failed"
    assert "its process died 2 times" in first.message
    assert second.status == "completed"


def test_hyperband_tells_each_trial_the_epochs_of_those_before_it(tmp_path):
    seen = []

    def measure(settings: dict[str, Any], rungs: tuple[int, ...]) -> Outcome:
        seen.append(rungs)
        return Outcome(objective(settings), epochs=rungs[-1])

    records = tuned(tmp_path, measure, None, "hyperband", max_epochs=9, factor=3)
    assert set(seen) == {(1,), (1, 3), (1, 3, 9), (3,), (3, 9), (9,)}
    assert {r.initial_epoch for r in records} == {0, 1, 3}
