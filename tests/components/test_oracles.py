"""KerasTuner's oracles as a sweep uses them: killed at any moment, resumed, stopped, and compared with each other.

Past 400 lines because each of the four oracles is held against its own undisturbed search.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import pytest
from keras_tuner.engine.trial import Trial

from shortlist.components import _oracles
from shortlist.components._oracles import Durable, make_oracle
from shortlist.components._search_space import SearchSpace, parse_space

DEFAULTS = {"x": 2.0, "n": 20, "kind": "plain", "drop": 0.1, "wide": False}
SPACE = parse_space(
    {
        "drop": {"type": "float", "range": [0.0, 0.5], "step": 0.1, "condition": {"kind": ["deep"]}},
        "x": {"type": "float", "range": [-5.0, 5.0]},
        "n": {"type": "int", "range": [5, 500], "log": True},
        "kind": {"type": "choice", "choices": ["plain", "deep"]},
        "wide": {"type": "bool", "condition": {"kind": ["deep"]}},
    },
    lambda name, changes: {**DEFAULTS, **changes}[name],
    "space",
)
SMALL = parse_space(
    {
        "kind": {"type": "choice", "choices": ["plain", "deep"]},
        "drop": {"type": "float", "range": [0.0, 0.3], "step": 0.1, "condition": {"kind": ["deep"]}},
        "wide": {"type": "bool"},
    },
    lambda name, changes: {**DEFAULTS, **changes}[name],
    "space",
)  # 2 * (1 + 4) settings in all


def hill(settings: dict[str, Any]) -> float:
    """Highest at x = 1, n = 100, deep, drop = 0.3, wide."""
    value = -((settings.get("x", 1.0) - 1) ** 2) - abs(math.log(settings.get("n", 100) / 100))
    deep = settings["kind"] == "deep"
    return value + (1 - abs(settings["drop"] - 0.3) if deep else 0.0) + (0.5 if settings.get("wide") else 0.0)


class Killed(BaseException):
    """The process is gone."""


class Run:
    """Tuners that take turns with one oracle, which is killed around some of its operations.

    Args:
      make: the oracle, from its file where there is one.
      tuners: how many; each gets a trial in one turn and ends it in the next.
      before: whether the oracle dies in the middle of an operation, when nothing is written.
      after: whether it dies right after one.
      wire: whether trials go through KerasTuner's messages.
    """

    def __init__(
        self,
        make: Callable[[], Durable],
        space: SearchSpace = SPACE,
        tuners: int = 1,
        before: Callable[[int], bool] = lambda n: False,
        after: Callable[[int], bool] = lambda n: False,
        wire: bool = False,
        fails: Callable[[str], bool] = lambda trial: False,
        objective: Callable[[dict[str, Any]], float] = hill,
    ):
        self.make, self.space, self.before, self.after, self.wire = make, space, before, after, wire
        self.fails, self.objective = fails, objective
        self.oracle = make()
        self.operations = 0
        self.held: dict[str, Trial] = {}
        self.ended: list[str] = []
        going = [f"tuner{n}" for n in range(tuners)]
        while going:
            for tuner in list(going):
                if tuner in self.held:
                    self._end(tuner)
                    continue
                trial = self._do(lambda tuner=tuner: self.oracle.create_trial(tuner))
                assert trial.trial_id not in self.ended
                if trial.status == "STOPPED":
                    going.remove(tuner)
                elif trial.status == "RUNNING":
                    self.held[tuner] = self._sent(trial)

    def _sent(self, trial: Trial) -> Trial:
        return Trial.from_proto(trial.to_proto()) if self.wire else trial

    def _end(self, tuner: str) -> None:
        settings = self.space.decode(self.held[tuner].hyperparameters.values)
        name = self.held[tuner].trial_id
        if not self.fails(name):
            self._do(lambda: self.oracle.update_trial(name, {"v": self.objective(settings)}))
        trial = self.held[tuner]
        trial.status = "FAILED" if self.fails(name) else "COMPLETED"
        self._do(lambda: self.oracle.end_trial(self._sent(trial)), tuner)
        self.ended.append(name)

    def _do(self, operation: Callable[[], Any], releases: str = "") -> Any:
        self.operations += 1
        if self.before(self.operations):

            def die() -> None:
                raise Killed

            self.oracle.commit = die
            with pytest.raises(Killed):
                operation()
            self._again()
        done = operation()
        self.held.pop(releases, None)
        if self.after(self.operations):
            self._again()
        return done

    def _again(self) -> None:
        """A new process, to which the tuners come back. Their trials run once more, and are the same."""
        self.oracle = self.make()
        for tuner, trial in self.held.items():
            given = self.oracle.create_trial(tuner)
            assert (given.trial_id, given.hyperparameters.values) == (trial.trial_id, self.values()[trial.trial_id])
            self.held[tuner] = self._sent(given)

    def values(self) -> dict[str, dict[str, Any]]:
        return {key: trial.hyperparameters.values for key, trial in self.oracle.trials.items()}

    def settings(self) -> list[dict[str, Any]]:
        return [self.space.decode(self.values()[key]) for key in self.oracle.start_order]

    def found(self) -> Any:
        trials = self.oracle.trials
        scores = [(key, trials[key].status, trials[key].score, self.values()[key]) for key in self.oracle.start_order]
        return scores, self.oracle.end_order, self.oracle.get_best_trials()[0].trial_id


def maker(
    file: Path, algorithm: str, trials: int | None = 14, seed: int = 3, space: SearchSpace = SPACE, **others: Any
) -> Callable[[], Durable]:
    return lambda: make_oracle(algorithm, file, "v", space.hyperparameters(), trials, seed, **others)


ALL = pytest.mark.parametrize("algorithm", ["random", "bayesian", "hyperband", "grid"])


def options(algorithm: str) -> dict[str, Any]:
    return {"max_epochs": 9} if algorithm == "hyperband" else {}


@ALL
def test_the_first_trial_has_the_shipped_settings(tmp_path: Path, algorithm: str):
    oracle = maker(tmp_path / "o.json", algorithm, **options(algorithm))()
    first = SPACE.decode(oracle.create_trial("tuner0").hyperparameters.values)
    assert first == {"x": 2.0, "n": 20, "kind": "plain"}  # `drop` and `wide` belong to another kind
    assert SPACE.decode(oracle.create_trial("tuner1").hyperparameters.values) != first


KILLS: dict[str, dict[str, Callable[[int], bool]]] = {
    "after each": {"after": lambda n: True},
    "after every third": {"after": lambda n: n % 3 == 0},
    "within each": {"before": lambda n: True},
    "within and after": {"before": lambda n: n % 4 == 1, "after": lambda n: n % 5 == 2},
}


@ALL
@pytest.mark.parametrize("tuners", [1, 2])
def test_a_killed_search_ends_as_an_undisturbed_one(tmp_path: Path, algorithm: str, tuners: int):
    def fails(trial: str) -> bool:
        return int(trial) % 6 == 4

    def go(name: str, **kills: Callable[[int], bool]) -> Run:
        make = maker(tmp_path / name, algorithm, trials=12, **options(algorithm))
        return Run(make, tuners=tuners, fails=fails, **kills)

    undisturbed = go("undisturbed")
    assert len(undisturbed.ended) == 12
    assert len({json.dumps(s, sort_keys=True) for s in undisturbed.settings()}) == (
        10 if algorithm == "hyperband" else 12
    )
    assert any("drop" in s for s in undisturbed.settings())
    for name, kills in KILLS.items():
        again = go(name, **kills)
        assert again.found() == undisturbed.found(), name
        assert sorted(again.ended) == sorted(undisturbed.ended)


@ALL
def test_a_kill_in_the_middle_of_writing_leaves_the_state_before(tmp_path: Path, algorithm: str):
    make = maker(tmp_path / "o.json", algorithm, trials=8, **options(algorithm))
    half = tmp_path / ".o.json.12345.partial"
    half.write_text('{"oracle": {"ongoing_tr')
    run = Run(make, after=lambda n: n % 2 == 0)
    assert run.found() == Run(maker(tmp_path / "p.json", algorithm, trials=8, **options(algorithm))).found()
    assert half.exists()


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    oracle = maker(tmp_path / "o.json", "random")()
    oracle.create_trial("tuner0")
    before = (tmp_path / "o.json").read_text()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            oracle.commit()
    assert [f.name for f in tmp_path.iterdir()] == ["o.json"]
    assert (tmp_path / "o.json").read_text() == before


def test_a_tuner_gets_the_trial_that_it_had(tmp_path: Path):
    make = maker(tmp_path / "o.json", "random")
    oracle = make()
    a, b = oracle.create_trial("a"), oracle.create_trial("b")
    oracle = make()
    assert oracle.create_trial("b").trial_id == b.trial_id
    assert oracle.create_trial("a").trial_id == a.trial_id
    assert oracle.create_trial("c").trial_id == "02"
    assert make().tuner_ids == {"a", "b", "c"}  # for whom the chief waits


@ALL
def test_an_end_that_is_told_twice_counts_once(tmp_path: Path, algorithm: str):
    make = maker(tmp_path / "o.json", algorithm, **options(algorithm))
    oracle = make()
    trial = oracle.create_trial("a")
    oracle.update_trial(trial.trial_id, {"v": 1.0})
    trial.status = "COMPLETED"
    sent = trial.to_proto()
    oracle.end_trial(trial)
    state = (tmp_path / "o.json").read_text()
    oracle = make()
    oracle.end_trial(Trial.from_proto(sent))
    oracle.commit()
    assert json.loads((tmp_path / "o.json").read_text()) == json.loads(state)


@ALL
def test_after_the_deadline_no_trial_begins_and_the_one_under_way_goes_on(tmp_path: Path, algorithm: str):
    make = maker(tmp_path / "o.json", algorithm, **options(algorithm))
    oracle = make()
    trial = oracle.create_trial("a")
    oracle = make()
    oracle.deadline = 1.0
    assert oracle.create_trial("b").status == "STOPPED"
    again = oracle.create_trial("a")
    assert (again.trial_id, again.status) == (trial.trial_id, "RUNNING")
    oracle.update_trial(again.trial_id, {"v": 1.0})
    again.status = "COMPLETED"
    oracle.end_trial(again)
    assert oracle.create_trial("a").status == "STOPPED"
    assert make().create_trial("a").status == "RUNNING"  # another run, with time left


@pytest.mark.parametrize("algorithm", ["random", "bayesian", "grid"])
def test_a_search_ends_where_there_is_nothing_new_to_try(tmp_path: Path, algorithm: str):
    run = Run(maker(tmp_path / "o.json", algorithm, trials=30, space=SMALL), SMALL)
    tried = [json.dumps(s, sort_keys=True) for s in run.settings()]
    assert len(tried) == len(set(tried)) == 10
    assert run.oracle.get_best_trials()[0].score == 1.5


def test_a_grid_is_the_product_of_all_values(tmp_path: Path):
    run = Run(maker(tmp_path / "o.json", "grid", trials=None, space=SMALL), SMALL, tuners=2, wire=True)
    expected = [{"kind": "plain", "wide": wide} for wide in (False, True)]
    expected += [{"kind": "deep", "drop": d, "wide": w} for d in (0.0, 0.1, 0.2, 0.3) for w in (False, True)]
    assert sorted(json.dumps(s, sort_keys=True) for s in run.settings()) == sorted(
        json.dumps(s, sort_keys=True) for s in expected
    )


@ALL
def test_trials_that_went_through_another_process_stay_as_the_oracle_made_them(tmp_path: Path, algorithm: str):
    here = Run(maker(tmp_path / "here", algorithm, **options(algorithm)))
    there = Run(maker(tmp_path / "there", algorithm, **options(algorithm)), wire=True)
    assert here.values() == there.values()


@pytest.mark.parametrize("algorithm", ["random", "bayesian", "grid"])
def test_more_trials_go_on_where_fewer_ended(tmp_path: Path, algorithm: str):
    file = tmp_path / "o.json"
    few = Run(maker(file, algorithm, trials=5))
    more = Run(maker(file, algorithm, trials=9))
    assert more.ended == ["5", "6", "7", "8"]
    assert more.settings()[:5] == few.settings()
    assert more.found() == Run(maker(tmp_path / "other.json", algorithm, trials=9)).found()
    assert Run(maker(file, algorithm, trials=9)).ended == []


def test_seeds_beside_each_other_share_no_draw(tmp_path: Path):
    seen: dict[float, int] = {}
    for seed in range(8):
        run = Run(maker(tmp_path / f"{seed}.json", "random", trials=8, seed=seed))
        for settings in run.settings()[1:]:
            assert seen.setdefault(settings["x"], seed) == seed
    assert len(seen) == 8 * 7
    again = Run(maker(tmp_path / "again.json", "random", trials=8, seed=4))
    assert {s["x"] for s in again.settings()[1:]} == {x for x, seed in seen.items() if seed == 4}


@pytest.mark.parametrize("seed", [0, 5000, 2**31 - 1])
def test_any_seed_does(tmp_path: Path, seed: int):
    run = Run(maker(tmp_path / "o.json", "bayesian", trials=8, seed=seed))
    assert len({s["x"] for s in run.settings()}) == 8


# --- Bayesian -------------------------------------------------------------------------------------------------------


def test_the_bayesian_search_stays_within_whole_ranges(tmp_path: Path):
    """The promise is highest at the end of the range, where KerasTuner's map of [0, 1) goes one too far."""
    space = parse_space({"n": {"type": "int", "range": [5, 500], "log": True}}, lambda n, c: {"n": 20, **c}[n], "space")
    run = Run(
        maker(tmp_path / "o.json", "bayesian", trials=8, space=space), space, objective=lambda s: math.log(s["n"])
    )
    tried = [s["n"] for s in run.settings()]
    assert max(tried) == 500
    assert len(set(tried)) == 8


def test_the_bayesian_search_follows_its_bound_to_the_bottom(tmp_path: Path):
    """The point that is proposed is as low as the lowest of a fine grid."""
    run = Run(
        maker(tmp_path / "o.json", "bayesian", trials=10, space=PLANE),
        PLANE,
        objective=lambda s: branin(s["x"], s["y"]),
    )
    oracle = run.oracle
    oracle.max_trials = 11
    proposed = oracle.create_trial("a").hyperparameters
    point = [hp.value_to_prob(proposed.values[hp.name]) for hp in proposed.space]
    axis = np.linspace(0, 1, 101)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    mean, deviation = oracle.gpr.predict(np.vstack([point, grid]), return_std=True)
    bound = mean - _oracles.BETA * deviation
    assert bound[0] <= bound[1:].min() + 1e-3


PLANE = parse_space(
    {"x": {"type": "float", "range": [-5.0, 10.0]}, "y": {"type": "float", "range": [0.0, 15.0]}},
    lambda name, changes: {"x": 2.5, "y": 7.5, **changes}[name],
    "space",
)


def branin(x: float, y: float) -> float:
    """Negated; the three maxima are -0.3979."""
    curve = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return -(curve**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10)


@pytest.mark.slow
def test_bayesian_beats_random_on_branin(tmp_path: Path):
    def best(algorithm: str, seed: int) -> float:
        make = maker(tmp_path / f"{algorithm}{seed}.json", algorithm, trials=25, seed=seed, space=PLANE)
        return Run(make, PLANE, objective=lambda s: branin(s["x"], s["y"])).oracle.get_best_trials()[0].score

    assert branin(math.pi, 2.275) == pytest.approx(-0.397887, abs=1e-6)
    pairs = [(best("bayesian", seed), best("random", seed)) for seed in range(20)]
    wins = sum(ours > theirs for ours, theirs in pairs)
    assert wins >= 16, pairs


# --- Hyperband ------------------------------------------------------------------------------------------------------

LINE = parse_space({"x": {"type": "float", "range": [0.0, 1.0]}}, lambda n, c: {"x": 0.5, **c}[n], "space")
BRACKETS = {  # of max_epochs = 27 and factor = 3: trials and epochs of each rung
    3: [(27, 1), (9, 3), (3, 9), (1, 27)],
    2: [(12, 3), (4, 9), (2, 27)],
    1: [(6, 9), (2, 27)],
    0: [(4, 27)],
}


@pytest.mark.parametrize("tuners", [1, 3])
def test_hyperband_runs_the_brackets_of_its_paper(tmp_path: Path, tuners: int):
    make = maker(tmp_path / "o.json", "hyperband", None, space=LINE, max_epochs=27, factor=3)
    run = Run(make, LINE, tuners, after=lambda n: n % 7 == 0, objective=lambda s: s["x"])
    trials = [run.oracle.trials[key] for key in run.oracle.start_order]
    assert len(trials) == 70
    rungs: dict[tuple[int, int, int], list[Trial]] = {}
    for trial in trials:
        values = trial.hyperparameters.values
        parent = values.get("tuner/trial_id")
        first = trial
        while "tuner/trial_id" in first.hyperparameters.values:
            first = run.oracle.trials[first.hyperparameters.values["tuner/trial_id"]]
        begun = first.hyperparameters.values["tuner/epochs"]
        rungs.setdefault((begun, values["tuner/initial_epoch"], values["tuner/epochs"]), []).append(trial)
        assert (parent is None) == (values["tuner/initial_epoch"] == 0)
    expected = {}
    for bracket in BRACKETS.values():
        before = 0
        for count, epochs in bracket:
            expected[bracket[0][1], before, epochs] = count
            before = epochs
    assert {key: len(found) for key, found in rungs.items()} == expected
    for (begun, before, _), found in rungs.items():
        if not before:
            continue
        rung = next(own for (b, _, e), own in rungs.items() if (b, e) == (begun, before))
        parents = [run.oracle.trials[t.hyperparameters.values["tuner/trial_id"]] for t in found]
        assert len({p.trial_id for p in parents}) == len(parents)
        assert all(p in rung and p.status == "COMPLETED" for p in parents)
        for trial, parent in zip(found, parents, strict=True):
            assert trial.hyperparameters.values["x"] == parent.hyperparameters.values["x"]
        if tuners == 1:
            best = sorted((t.score for t in rung), reverse=True)[: len(found)]
            assert sorted((p.score for p in parents), reverse=True) == best


def test_hyperband_does_with_failed_trials(tmp_path: Path):
    """Of 9 trials 3 fail; one of three of the others would go on, and none that failed."""
    make = maker(tmp_path / "o.json", "hyperband", None, space=LINE, max_epochs=9, factor=3)
    run = Run(make, LINE, fails=lambda name: name in ("0001", "0004", "0007"), objective=lambda s: s["x"])
    failed = {key for key, trial in run.oracle.trials.items() if trial.status == "FAILED"}
    assert failed == {"0001", "0004", "0007"}
    parents = {v.get("tuner/trial_id") for v in run.values().values()} - {None}
    assert parents
    assert not parents & failed
    assert run.oracle.create_trial("tuner0").status == "STOPPED"


def test_hyperband_stops_at_its_number_of_trials(tmp_path: Path):
    make = maker(tmp_path / "o.json", "hyperband", 5, space=LINE, max_epochs=9)
    assert len(Run(make, LINE, objective=lambda s: s["x"]).ended) == 5


def test_the_state_is_read_by_kerastuners_own_classes(tmp_path: Path):
    Run(maker(tmp_path / "o.json", "random", trials=4))
    state = json.loads((tmp_path / "o.json").read_text())
    assert state["oracle"]["end_order"] == ["0", "1", "2", "3"]
    trial = Trial.from_state(state["trials"]["2"])
    assert trial.score == pytest.approx(hill(SPACE.decode(trial.hyperparameters.values)))
    assert keras_tuner.HyperParameters.from_config(state["oracle"]["hyperparameters"]).values["x"] == 2.0
