"""The tuner with trials that only pretend to train."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from keras_tuner.errors import FatalError
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import metadata

from shortlist import ShortlistError
from shortlist.components import tuner as tuner_module
from shortlist.components._oracles import make_oracle
from shortlist.components._search_space import parse_space
from shortlist.components.tuner import Outcome, Tuner, best_settings, read_trials

DEFAULTS = {"rate": 0.123456789, "layers": (64,), "drop": 0.25}
SPACE = parse_space(
    {
        "rate": {"type": "float", "range": [0.01, 1.0], "log": True},
        "layers": {"type": "choice", "choices": [[], [64], [128, 64]]},
        "drop": {"type": "float", "range": [0.0, 0.5], "condition": {"layers": [[64], [128, 64]]}},
    },
    lambda name, changes: {**DEFAULTS, **changes}[name],
    "space",
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("KERASTUNER_", "SHORTLIST_"))]:
        monkeypatch.delenv(name)


def make(folder: Path, measure: Callable[..., Outcome], trials: int | None = 6, algorithm: str = "random") -> Tuner:
    folder.mkdir(exist_ok=True)
    hyperband = {"max_epochs": 27, "factor": 3} if algorithm == "hyperband" else {}
    oracle = make_oracle(
        algorithm, folder / "oracle.json", "ndcg@10", SPACE.hyperparameters(), trials, seed=1, **hyperband
    )
    return Tuner(oracle, measure, SPACE, folder)


def score(settings: dict[str, Any]) -> float:
    return 0.5 - abs(math.log10(settings["rate"] / 0.3)) / 10


class Plan:
    """A measure that does the next thing of a list: raises it, calls it, or gives it as the objective."""

    def __init__(self, *steps: Any):
        self.steps, self.seen = iter(steps), []

    def __call__(self, settings: dict[str, Any], rungs: tuple[int, ...]) -> Outcome:
        self.seen.append(settings)
        step = next(self.steps, None)
        if isinstance(step, BaseException):
            raise step
        step = step() if callable(step) else step
        return step if isinstance(step, Outcome) else Outcome(score(settings) if step is None else step)


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(tmp_path: Path):
    failures = [
        ShortlistError("`l2` must be larger. Received: 0."),
        MemoryError(),
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9066,4096]"),
        math.nan,
        math.inf,
        lambda: 1 // 0,
        ValueError("too\n  long: " + "x" * 5000),
        FileNotFoundError(2, "No such file or directory", "ratings.csv"),
    ]
    plan = Plan(0.3, *failures, 0.4)
    make(tmp_path / "search", plan, trials=10).search()
    records = read_trials(tmp_path / "search", SPACE)
    assert [r.status for r in records] == ["completed"] + ["failed"] * 8 + ["completed"]
    assert [r.objective for r in records] == [0.3] + [None] * 8 + [0.4]
    messages = [r.message for r in records]
    assert messages[:7] == [
        "",
        "`l2` must be larger. Received: 0.",
        "MemoryError",
        "OOM when allocating tensor with shape[9066,4096]",
        "`ndcg@10` must be a finite number. Received: nan.",
        "`ndcg@10` must be a finite number. Received: inf.",
        "integer division or modulo by zero",
    ]
    assert messages[7] == ("too long: " + "x" * 5000)[:1000]
    assert "ratings.csv" in messages[8]
    assert len(plan.seen) == 10
    bug = json.loads((tmp_path / "search" / "trials" / "06.json").read_text())
    assert "ZeroDivisionError" in bug["traceback"]
    assert "in <lambda>" in bug["traceback"]
    assert best_settings(tmp_path / "search", SPACE) == (plan.seen[9], None)


def test_even_if_all_trials_fail(tmp_path: Path):
    make(tmp_path / "search", Plan(*[MemoryError()] * 20), trials=20).search()
    assert [r.status for r in read_trials(tmp_path / "search", SPACE)] == ["failed"] * 20
    assert best_settings(tmp_path / "search", SPACE) is None


def full() -> None:
    try:
        raise OSError(28, "No space left on device")
    except OSError as error:
        raise ShortlistError("`workdir` runs cannot be written: No space left on device.") from error


def test_a_disk_that_cannot_be_written_ends_the_search_and_the_trial_is_run_again(tmp_path: Path):
    plan = Plan(0.3, full, full, full, 0.4)
    for _ in range(3):
        with pytest.raises(FatalError, match="`workdir` runs cannot be written: No space left on device"):
            make(tmp_path / "search", plan, trials=3).search()
        assert [r.status for r in read_trials(tmp_path / "search", SPACE)] == ["completed", "running"]
    make(tmp_path / "search", plan, trials=3).search()
    records = read_trials(tmp_path / "search", SPACE)
    assert [(r.trial, r.status, r.message) for r in records] == [(str(n), "completed", "") for n in range(3)]
    assert plan.seen[1] == plan.seen[2] == plan.seen[3] == plan.seen[4]


def disk(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Path], bool]) -> None:
    write = tuner_module.replace_file

    def replace(path: Path, text: str) -> None:
        if fails(path):
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(tuner_module, "replace_file", replace)


def test_so_does_one_that_the_records_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = Plan()
    with monkeypatch.context() as patch:
        disk(patch, lambda path: path.name == "1.json")
        with pytest.raises(FatalError, match="cannot be written: No space left on device"):
            make(tmp_path / "search", plan, trials=3).search()
    assert [r.status for r in read_trials(tmp_path / "search", SPACE)] == ["completed", "running"]
    make(tmp_path / "search", plan, trials=3).search()
    assert [r.status for r in read_trials(tmp_path / "search", SPACE)] == ["completed"] * 3
    assert len(plan.seen) == 3


def test_or_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def copy(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    logs = tmp_path / "logs"
    logs.mkdir()
    monkeypatch.setattr(tuner_module.shutil, "copytree", copy)
    with pytest.raises(FatalError, match="cannot be written"):
        make(tmp_path / "search", Plan(Outcome(0.3, logs=(logs,)))).search()
    assert [r.status for r in read_trials(tmp_path / "search", SPACE)] == ["running"]


def test_a_search_that_is_interrupted_goes_on_with_its_trial(tmp_path: Path):
    """As often as somebody likes: that is no death."""
    plan = Plan(0.3, *[KeyboardInterrupt()] * 4, 0.4)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "search", plan, trials=2).search()
    make(tmp_path / "search", plan, trials=2).search()
    assert [r.objective for r in read_trials(tmp_path / "search", SPACE)] == [0.3, 0.4]


def test_a_trial_whose_process_died_twice_fails_at_the_third(tmp_path: Path):
    file = tmp_path / "search" / "trials" / "0.json"
    during: list[str] = []

    def die() -> None:
        during.append(file.read_text())
        raise KeyboardInterrupt

    plan = Plan(die, die, 0.4)
    for number in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "search", plan, trials=2).search()
        file.write_text(during[-1])  # what a killed process leaves
        assert json.loads(during[-1])["deaths"] == number
    make(tmp_path / "search", plan, trials=2).search()
    first, second = read_trials(tmp_path / "search", SPACE)
    assert (first.status, second.status, second.objective) == ("failed", "completed", 0.4)
    assert first.message == ("its process died 2 times. Memory may be short: try a smaller range, or fewer --workers.")
    assert len(plan.seen) == 3


def test_a_finished_search_runs_nothing_again(tmp_path: Path):
    plan = Plan()
    make(tmp_path / "search", plan, trials=4).search()
    before = read_trials(tmp_path / "search", SPACE)
    make(tmp_path / "search", plan, trials=4).search()
    assert len(plan.seen) == 4
    assert read_trials(tmp_path / "search", SPACE) == before
    make(tmp_path / "search", plan, trials=5).search()
    assert len(plan.seen) == 5
    assert read_trials(tmp_path / "search", SPACE)[:4] == before


def test_records_say_what_was_tried_and_when(tmp_path: Path):
    plan = Plan(Outcome(0.3, epochs=7, stopped_early=True), Outcome(0.2, epochs=9), 0.1)
    make(tmp_path / "search", plan, trials=3).search()
    first, second, third = read_trials(tmp_path / "search", SPACE, "ranker")
    assert (first.trial, first.stage, first.status, first.objective, first.epochs) == (
        "0",
        "ranker",
        "early-stopped",
        0.3,
        7,
    )
    assert first.settings == {"rate": 0.123456789, "layers": "[64]", "drop": 0.25}
    assert plan.seen[0] == {"rate": 0.123456789, "layers": [64], "drop": 0.25}
    assert (second.status, second.epochs, third.epochs, third.parent) == ("completed", 9, None, None)
    assert first.started <= second.started <= third.started
    assert all(0 <= r.seconds < 60 and r.worker == "tuner0" for r in (first, second, third))
    assert best_settings(tmp_path / "search", SPACE) == (plan.seen[0], None)


def test_before_the_first_trial_there_are_none(tmp_path: Path):
    assert read_trials(tmp_path, SPACE) == []
    assert best_settings(tmp_path, SPACE) is None


def test_hyperband_hands_over_the_rungs(tmp_path: Path):
    rungs: list[tuple[int, ...]] = []

    def measure(settings: dict[str, Any], chain: tuple[int, ...]) -> Outcome:
        rungs.append(chain)
        return Outcome(score(settings) + chain[-1] / 100, epochs=chain[-1])

    make(tmp_path / "search", measure, trials=None, algorithm="hyperband").search()
    counts = {chain: rungs.count(chain) for chain in rungs}
    assert counts == {
        (1,): 27,
        (1, 3): 9,
        (1, 3, 9): 3,
        (1, 3, 9, 27): 1,
        (3,): 12,
        (3, 9): 4,
        (3, 9, 27): 2,
        (9,): 6,
        (9, 27): 2,
        (27,): 4,
    }
    records = read_trials(tmp_path / "search", SPACE)
    by_name = {r.trial: r for r in records}
    for record, chain in zip(records, rungs, strict=True):
        assert record.epochs == chain[-1]
        assert record.initial_epoch == (chain[-2] if len(chain) > 1 else 0)
        if record.parent is None:
            assert len(chain) == 1
        else:
            parent = by_name[record.parent]
            assert (parent.epochs, parent.settings) == (record.initial_epoch, record.settings)
    best = max(records, key=lambda r: r.objective)
    settings, epochs = best_settings(tmp_path / "search", SPACE)
    assert epochs == 27
    assert settings["rate"] == best.settings["rate"]


def test_an_idle_oracle_is_not_asked_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a grid's first trial the next follow when it has ended; another tuner waits for that."""
    waits: list[float] = []
    tuner = make(tmp_path / "search", Plan(0.3, 0.4, 0.5), trials=3)
    create = tuner.oracle.create_trial
    idle = iter([False, True, True, False, False, False])

    def sometimes(tuner_id: str) -> Any:
        if next(idle):
            return type("Idle", (), {"status": "IDLE"})()
        return create(tuner_id)

    monkeypatch.setattr(tuner.oracle, "create_trial", sometimes)
    monkeypatch.setattr(tuner_module.time, "sleep", waits.append)
    tuner.search()
    assert waits == [0.5, 0.5]
    assert len(read_trials(tmp_path / "search", SPACE)) == 3


def events(folder: Path) -> event_accumulator.EventAccumulator:
    found = event_accumulator.EventAccumulator(str(folder), size_guidance={event_accumulator.TENSORS: 0})
    return found.Reload()


def test_tensorboard_shows_settings_objective_and_curves(tmp_path: Path):
    logs = tmp_path / "logs"
    with tf.summary.create_file_writer(str(logs)).as_default():
        for step, loss in enumerate((0.9, 0.5), 1):
            tf.summary.scalar("epoch_loss", loss, step=step)
    make(tmp_path / "search", Plan(Outcome(0.3, epochs=7, logs=(logs,)), MemoryError()), trials=2).search()
    folder = tmp_path / "search" / "tensorboard"
    assert [f.name for f in folder.iterdir()] == ["0"]
    found = events(folder / "0")
    (objective,) = found.Tensors("ndcg@10")
    assert objective.step == 7
    assert tf.make_ndarray(objective.tensor_proto).item() == pytest.approx(0.3)
    assert [tf.make_ndarray(e.tensor_proto).item() for e in found.Tensors("epoch_loss")] == pytest.approx([0.9, 0.5])
    content = found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    settings = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert settings == {"rate": 0.123456789, "layers": "[64]", "drop": 0.25}


def test_a_trial_that_is_run_again_leaves_one_record_in_tensorboard(tmp_path: Path):
    tuner = make(tmp_path / "search", Plan(0.3, 0.4), trials=1)
    trial = tuner.oracle.create_trial("tuner0")
    for value in (0.3, 0.4):
        assert tuner.run_trial(trial) == value
    found = events(tmp_path / "search" / "tensorboard" / "0")
    assert [tf.make_ndarray(e.tensor_proto).item() for e in found.Tensors("ndcg@10")] == pytest.approx([0.4])
