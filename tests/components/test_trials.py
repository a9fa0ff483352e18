"""The table of a sweep, its best trial and the importance of its settings, from trials whose answers are known."""

import datetime

import numpy as np
import pytest
from sweep_cases import sweep, trial

from shortlist.components._trials import best_trial, importance, trials_table


def test_the_table_has_the_types_of_its_settings():
    first = {"a": 1, "b": True, "c": 0.5, "d": "x", "e": 1, "f": 1}
    second = {"a": 2, "b": False, "c": 1.5, "d": "[128, 64]", "e": 0.5, "f": "one", "g": 3}
    records = [
        trial(0, 0.25, first, worker="w1", epochs=4),
        trial(1, None, second, stage="ranker", parent="000", initial_epoch=4, epochs=12, message="NaN"),
        trial(2, float("nan")),
    ]
    table = trials_table(records)
    assert {f.name: str(f.type) for f in table.schema} == {
        **dict.fromkeys(("stage", "trial", "status"), "string"),
        "objective": "double",
        **dict.fromkeys(("epochs", "initial_epoch"), "int64"),
        "parent": "string",
        "started": "timestamp[s, tz=UTC]",
        "seconds": "double",
        **dict.fromkeys(("worker", "message"), "string"),
        **{"settings.a": "int64", "settings.b": "bool", "settings.c": "double", "settings.d": "string"},
        **{"settings.e": "double", "settings.f": "string", "settings.g": "int64"},
    }
    row = {k: v for k, v in table.to_pylist()[1].items() if not k.startswith("settings.")}
    assert row == {
        "stage": "ranker",
        "trial": "001",
        "status": "failed",
        "objective": None,
        "epochs": 12,
        "initial_epoch": 4,
        "parent": "000",
        "started": datetime.datetime(2025, 11, 24, 16, 0, 10, tzinfo=datetime.timezone.utc),
        "seconds": 8.0,
        "worker": "",
        "message": "NaN",
    }
    assert table["objective"].to_pylist() == [0.25, None, None]
    assert table["settings.e"].to_pylist() == [1.0, 0.5, None]
    assert table["settings.f"].to_pylist() == ["1", "one", None]
    assert table["settings.g"].to_pylist() == [None, 3, None]


def test_a_sweep_without_a_trial_has_an_empty_table():
    table = trials_table([])
    assert (table.num_rows, table.num_columns) == (0, 11)


@pytest.mark.parametrize(
    ("objectives", "best"),
    [
        ([0.1, 0.3, 0.2], 1),
        ([0.3, 0.3, 0.2], 0),
        ([float("nan"), -0.5, float("inf")], 1),
        ([0.0, -1.0], 0),
        ([None, float("nan")], None),
        ([], None),
    ],
)
def test_the_best_trial_has_the_highest_finite_objective(objectives, best):
    records = [trial(n, objective) for n, objective in enumerate(objectives)]
    assert best_trial(records) is (None if best is None else records[best])


def test_a_failed_trial_is_never_the_best_and_an_early_stopped_one_may_be():
    records = [trial(0, 0.9, status="failed"), trial(1, 0.1), trial(2, 0.5, status="early-stopped")]
    assert best_trial(records) is records[2]


def test_the_setting_that_matters_comes_first():
    found = importance(trials_table(sweep(60)))
    assert found[0][0] == "l2"
    assert found[0][1] > 10 * abs(found[1][1])
    assert all(deviation >= 0 for _, _, deviation in found)
    assert {name for name, _, _ in found} == {  # `seed` has one value
        *("embedding_dim", "l2", "solver", "hidden_units", "weighted", "dropout", "cg_steps")
    }


@pytest.mark.parametrize("kind", ["text", "bool", "inactive"])
def test_a_setting_that_is_no_number_can_matter(kind):
    draw = np.random.default_rng(1)
    records = []
    for n in range(40):
        on = bool(draw.integers(2))
        value = {"text": {"x": "b" if on else "a"}, "bool": {"x": on}, "inactive": {"x": 1} if on else {}}[kind]
        records.append(trial(n, float(on) + draw.normal(0, 0.01), {"noise": float(draw.normal()), **value}))
    assert [name for name, _, _ in importance(trials_table(records))] == ["x", "noise"]


def test_epochs_are_not_taken_for_a_setting_that_grows_with_them():
    draw = np.random.default_rng(2)
    records = []
    for n in range(60):
        epochs = int(draw.choice([1, 3, 9, 27]))
        records.append(trial(n, np.log(epochs), {"a": float(draw.normal()), "b": float(draw.normal())}, epochs=epochs))
    assert max(mean for _, mean, _ in importance(trials_table(records))) < 0.1
