"""Sweeps of real models on a small log: what a trial runs, what it never sees, and how a killed sweep goes on."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import small_run
import tensorflow as tf
import tomllib

from shortlist import ShortlistError
from shortlist.components._config import parse
from shortlist.components.evaluator import METRICS
from shortlist.components.splitter import SplitConfig, split_rows
from shortlist.trainers.tuning import Sweep, SweepConfig, read_sweep, tune
from shortlist.trainers.two_stage import load_config, model_names, setting_of

SPACE = {
    "unobserved_weight": {"type": "float", "range": [0.02, 1.0], "log": True},
    "embedding_dim": {"type": "choice", "choices": [2, 4, 8]},
}
QUICK = {"embedding_dim": 4, "epochs": 2}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    small_run.write_log(folder)
    return folder


def config(log: Path, target: str = "wals", given: dict[str, Any] | None = None, **values: Any) -> SweepConfig:
    place = {"two_stage": "", "weighted_logistic": "ranker."}.get(target, f"sources.{target}.")
    own = {} if target == "two_stage" else {place + name: value for name, value in (given or QUICK).items()}
    files = {"data.source": f"parquet:{log / 'log.parquet'}", "data.items": str(log / "items.csv")}
    pipeline = {} if target != "two_stage" else (given or {})
    values = {"trials": 3, "objective": "ndcg@10", **values}
    return parse(SweepConfig, {"target": target, "given": {**files, **own, **pipeline}, **values}, "the sweep")


def wals(log: Path, **values: Any) -> SweepConfig:
    return config(log, given={"epochs": 2, "init_stddev": 0.2}, space=SPACE | values.pop("more", {}), **values)


def facts(sweep: Sweep) -> list[tuple[Any, ...]]:
    """What two sweeps that are alike have in common."""
    return [(r.stage, r.trial, r.status, r.objective, tuple(sorted(r.settings.items()))) for r in sweep.records()]


# --- what is searched ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [*model_names(), "two_stage"])
def test_every_shipped_space_fits_the_settings_and_begins_with_the_shipped_ones(target, tmp_path):
    sweep = Sweep(parse(SweepConfig, {"target": target}), tmp_path)
    for stage in sweep.stages:
        space = sweep.spaces[stage.name]
        assert space.settings
        shipped = (
            {n: setting_of(load_config(), n) for n in map("{}".format, space.settings)} if not stage.prefix else {}
        )
        assert all(space.defaults[name] == value for name, value in shipped.items())
        assert len(space.hyperparameters().space) == len(space.settings)
    assert not list(tmp_path.iterdir())


def test_two_stages_search_the_sources_first_and_then_the_ranker(tmp_path):
    sweep = Sweep(parse(SweepConfig, {"target": "two_stage", "given": {"shortlist.size": 50}}), tmp_path)
    assert [(s.name, s.system, s.objective) for s in sweep.stages] == [
        ("retrieval", "union", "recall@50"),
        ("ranker", "two_stage", "ndcg@10"),
    ]
    assert {"sources.wals.l2", "sources.two_tower.dropout", "shortlist.quota"} <= set(
        sweep.spaces["retrieval"].settings
    )
    assert {name.partition(".")[0] for name in sweep.spaces["ranker"].settings} == {"ranker"}
    assert sweep.spaces["ranker"].settings["ranker.dropout"].condition.keys() == {"ranker.hidden_units"}


def test_what_is_given_is_not_searched(log, tmp_path):
    sweep = Sweep(config(log, given={"embedding_dim": 3}), tmp_path)
    assert sweep.spaces[""].settings.keys() == {"unobserved_weight", "l2", "frequency_exponent", "epochs"}
    assert setting_of(sweep.pipeline_config({}, "ndcg@10"), "sources.wals.embedding_dim") == 3


SWEPT = (
    "`strategy` of a sweep can be none, mirrored: each trial trains in one process. Give it to `shortlist train` or "
    "`run`, with the best.toml of the sweep."
)
BAD = [
    ({"target": "wols"}, f"`target` must be one of {', '.join(model_names())}, two_stage"),
    ({"trials": 0}, "`trials` of the sweep: Input should be greater than or equal to 1. Received: 0."),
    (
        {"objective": "ndgc@10"},
        "`objective` must be one of ndcg@K, hr@K, recall@K, precision@K, mrr@K, map@K, coverage@K",
    ),
    ({"objective": "ndcg"}, "with K from 1 up. Received: 'ndcg'."),
    ({"objective": "ndcg@0"}, "with K from 1 up. Received: 'ndcg@0'."),
    ({"algorithm": "annealing"}, "`algorithm` of the sweep"),
    ({"space": {"embeding_dim": {"type": "int", "range": [2, 4]}}}, "Did you mean `embedding_dim`?"),
    (
        {"space": {"l2": {"type": "float", "range": [0.1, 0.1]}}},
        "`l2` of the search space of wals: `range` must go from a number to a larger one. Received: [0.1, 0.1]",
    ),
    ({"space": {"embedding_dim": {"type": "float", "range": [32.0, 128.0]}}}, "Input should be a valid integer"),
    ({"space": {}}, "must leave a setting to search. Received: all of none."),
    ({"given": {"sources.wals.l2": 1, "sources.wals.x": 1}}, "`x` is not a setting of wals"),
    ({"target": "popularity", "algorithm": "hyperband"}, "hyperband needs a model that is trained in epochs."),
    (
        {"target": "two_stage", "space": {"shortlist.size": {"type": "int", "range": [100, 500]}}},
        "`shortlist.size` can't",
    ),
    ({"given": {"sources.wals.strategy": "multi_worker"}}, f"{SWEPT} Received: multi_worker."),
    ({"target": "two_stage", "given": {"strategy": "multi_worker"}}, f"{SWEPT} Received: multi_worker."),
    (
        {"target": "two_tower", "given": {"sources.two_tower.strategy": "parameter_server"}},
        f"{SWEPT} Received: parameter_server.",
    ),
    (
        {"space": {"strategy": {"type": "choice", "choices": ["mirrored", "multi_worker"]}}},
        f"{SWEPT} Received: multi_worker.",
    ),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_what_does_not_fit_is_refused_before_anything_is_written(values, message, tmp_path):
    with pytest.raises(ShortlistError) as error:
        tune(parse(SweepConfig, {"target": "wals", **values}, "the sweep"), tmp_path / "sweep")
    assert message in str(error.value)
    assert not (tmp_path / "sweep").exists()


def test_all_metrics_of_the_evaluator_can_be_the_objective():
    assert [parse(SweepConfig, {"target": "wals", "objective": f"{metric}@5"}) for metric in (*METRICS, "coverage")]


# --- what is run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return tune(wals(log, trials=4), tmp_path_factory.mktemp("swept") / "sweep")


def test_a_sweep_keeps_its_trials_its_page_and_its_best(swept, log):
    records = swept.records()
    assert [r.status for r in records] == ["completed"] * 4
    assert records[0].settings == {"unobserved_weight": 0.2, "embedding_dim": 2}  # the shipped 64 is not among them
    table = pq.read_table(swept.workdir / "trials.parquet")
    assert table["objective"].to_pylist() == [r.objective for r in records]
    page = (swept.workdir / "sweep.html").read_text("utf-8")
    assert "Sweep of wals" in page
    assert "shipped defaults" not in page
    best = max(records, key=lambda r: r.objective or 0)
    found = load_config(overrides={"sources": {"wals": load_toml(swept.workdir / "best.toml")}})
    for name, value in best.settings.items():
        assert setting_of(found, f"sources.wals.{name}") == value
    assert setting_of(found, "sources.wals.init_stddev") == 0.2


def load_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8"))


def test_a_sweep_has_no_test_at_all(swept):
    parts = {path.stem for path in swept.workdir.glob("artifacts/*/*/*.parquet")}
    assert {"train", "rank_train", "validation"} <= parts
    assert "test" not in parts
    splits = json.loads(next(swept.workdir.glob("artifacts/Splitter/*/splits.json")).read_text())
    assert "test" not in splits["rows"]


def test_what_happens_in_test_changes_no_trial(swept, log, tmp_path):
    table = pq.read_table(log / "log.parquet")
    whole = table.append_column("event", pa.array(["watch"] * len(table)))
    rows = split_rows(whole, SplitConfig())["test"]
    items = np.array(table["item"].to_pylist())
    items[rows] = np.random.default_rng(0).permutation(items[rows])
    (tmp_path / "log").mkdir()
    pq.write_table(table.set_column(1, "item", pa.array(items)), tmp_path / "log" / "log.parquet")
    (tmp_path / "log" / "items.csv").write_text((log / "items.csv").read_text())
    assert pc.sum(pc.equal(pa.array(items), table["item"])).as_py() < len(items)
    again = tune(wals(tmp_path / "log", trials=4), tmp_path / "sweep")
    assert facts(again) == facts(swept)


def test_the_folder_of_a_sweep_is_not_taken_by_mistake(swept, log, tmp_path):
    with pytest.raises(ShortlistError, match=r"holds a sweep\. Go on with it by --resume, begin anew by --overwrite"):
        tune(wals(log, trials=4), swept.workdir)
    with pytest.raises(ShortlistError, match="Give the same `objective`, or another --workdir"):
        tune(wals(log, trials=4, objective="mrr@5"), swept.workdir, resume=True)
    with pytest.raises(ShortlistError, match="must be the folder of a sweep"):
        read_sweep(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ShortlistError, match="cannot be written"):
        tune(wals(log), tmp_path / "file" / "sweep")
    assert not (tmp_path / "file" / "sweep").exists()


def test_a_finished_sweep_goes_on_with_more_trials_and_begins_anew_when_told(log, tmp_path):
    first = tune(wals(log, trials=2), tmp_path / "sweep")
    found, started = facts(first), [r.started for r in first.records()]
    more = tune(wals(log, trials=3), tmp_path / "sweep", resume=True)
    assert [r.started for r in more.records()[:2]] == started
    assert len(more.records()) == 3
    assert facts(more)[:2] == found
    anew = tune(wals(log, trials=2, objective="mrr@5"), tmp_path / "sweep", overwrite=True)
    assert len(anew.records()) == 2
    assert anew.records()[0].started > started[-1]


def test_a_trial_that_fails_is_recorded_and_the_sweep_goes_on(log, tmp_path):
    space = {"learning_rate": {"type": "choice", "choices": [0.1, 1e38]}}
    given = {"embedding_dim": 4, "epochs": 1, "batch_size": 256}
    sweep = tune(config(log, "two_tower", given, space=space, algorithm="grid", trials=None), tmp_path / "sweep")
    (good, bad) = sweep.records()
    assert (good.status, bad.status) == ("completed", "failed")
    assert "scores items with NaN" in bad.message
    assert bad.objective is None
    assert load_toml(tmp_path / "sweep" / "best.toml")["learning_rate"] == 0.1


def test_a_sweep_of_failures_says_why(log, tmp_path):
    with pytest.raises(
        ShortlistError, match=r"no trial of the sweep gave a result.*The last said: `evaluation.cutoffs`"
    ):
        tune(wals(log, trials=1, objective="ndcg@1000"), tmp_path / "sweep")
    assert pq.read_table(tmp_path / "sweep" / "trials.parquet")["status"].to_pylist() == ["failed"]


def test_an_early_stopped_trial_is_recorded_as_such(log, tmp_path):
    space = {"l2": {"type": "float", "range": [0.001, 0.1], "log": True}}
    given = {"embedding_dim": 2, "epochs": 60, "patience": 2}
    (record,) = tune(config(log, given=given, space=space, trials=1), tmp_path / "sweep").records()
    assert record.status == "early-stopped"
    assert 3 <= (record.epochs or 0) < 60


def test_the_ranker_is_tuned_on_candidates_that_are_made_once(log, tmp_path):
    fixed = [word.split("=") for word in small_run.SETTINGS if word.startswith(("sources", "shortlist"))]
    values = config(log, "weighted_logistic", {"epochs": 1, "hidden_units": [4]}, trials=2).model_dump()
    values["given"] |= {name: json.loads(value) for name, value in fixed}
    sweep = tune(SweepConfig(**values), tmp_path / "sweep")
    assert [r.status for r in sweep.records()] == ["completed", "completed"]
    made = {path.name: len(list(path.iterdir())) for path in (tmp_path / "sweep" / "artifacts").iterdir()}
    assert not list((tmp_path / "sweep").glob("artifacts/CandidateGenerator/*/test.npz"))
    assert {name: n for name, n in made.items() if name.startswith(("Trainer.w", "Cand"))} == {
        "CandidateGenerator": 1,
        "Trainer.wals": 1,
        "Trainer.weighted_logistic": 2,
    }


def test_two_stages_are_tuned_one_after_the_other_and_share_what_is_equal(log, tmp_path):
    space = {
        "sources.wals.unobserved_weight": {"type": "choice", "choices": [0.2, 0.5]},
        "shortlist.quota": {"type": "choice", "choices": [40, 300]},
        "ranker.learning_rate": {"type": "choice", "choices": [0.002, 0.01]},
    }
    given = {name: json.loads(value) for name, value in (word.split("=") for word in small_run.SETTINGS)}
    given = {name: value for name, value in given.items() if name.startswith(("sources", "ranker"))}
    given |= {"shortlist.size": 20, "ranker.epochs": 1}
    values = config(log, "two_stage", given, space=space, algorithm="grid", trials=None).model_dump()
    sweep = tune(SweepConfig(**values), tmp_path / "sweep")
    stages = [r.stage for r in sweep.records()]
    assert stages == ["retrieval"] * 4 + ["ranker"] * 2
    assert {r.status for r in sweep.records()} == {"completed"}
    made = lambda step: [p for p in (tmp_path / "sweep" / "artifacts" / step).iterdir() if p.is_dir()]  # noqa: E731
    assert len(made("Trainer.wals")) == 2  # of four trials
    assert len(made("Trainer.two_tower")) == 1
    assert len(made("CandidateGenerator")) == 4
    best = load_config(tmp_path / "sweep" / "best.toml")
    top = max((r for r in sweep.records() if r.stage == "retrieval"), key=lambda r: r.objective or 0)
    assert setting_of(best, "sources.wals.unobserved_weight") == top.settings["sources.wals.unobserved_weight"]
    assert best.shortlist.quota == top.settings["shortlist.quota"]
    assert setting_of(best, "ranker.epochs") == 1


# --- Hyperband -------------------------------------------------------------------------------------------------------


def test_hyperband_goes_on_with_a_trial_and_does_not_begin_again(log, tmp_path):
    space = {"l2": {"type": "float", "range": [0.001, 0.1], "log": True}}
    values = config(log, given={"embedding_dim": 3}, space=space, algorithm="hyperband", trials=None)
    sweep = tune(SweepConfig(**{**values.model_dump(), "max_epochs": 9}), tmp_path / "sweep")
    records = {r.trial: r for r in sweep.records()}
    assert {r.status for r in records.values()} == {"completed"}
    chains = [r for r in records.values() if r.parent is not None and records[r.parent].parent is not None]
    assert chains, "no trial went through three rungs"
    for record in chains:
        assert record.parent is not None
        middle = records[record.parent]
        assert (middle.initial_epoch, middle.epochs, record.initial_epoch, record.epochs) == (1, 3, 3, 9)
        assert record.settings == middle.settings
    by_epochs = {n: [r for r in records.values() if r.epochs == n] for n in (1, 3, 9)}
    made = {
        n: list((tmp_path / "sweep" / "artifacts" / f"Trainer.wals.epochs{n}").glob("*/model.json")) for n in (1, 3, 9)
    }
    assert {n: len(paths) for n, paths in made.items()} == {n: len(rs) for n, rs in by_epochs.items()}
    # Each leg trained only its own epochs, and the last one is where an undisturbed training of nine ends.
    going_on = [p for p in made[9] if "start" in json.loads((p.parent / "lineage.json").read_text())["inputs"]]
    assert going_on
    for path in going_on:
        info = json.loads(path.read_text())
        assert len(info["history"]["loss"]) == 6
        straight = tune(
            config(
                log,
                given={"embedding_dim": 3, "epochs": 9, "l2": info["config"]["l2"]},
                trials=1,
                space={"init_stddev": {"type": "float", "range": [0.1, 0.2]}},
            ),
            tmp_path / f"straight-{path.parent.name}",
        )
        (alone,) = (straight.workdir / "artifacts" / "Trainer.wals").glob("*/model.keras")
        a, b = (tf.keras.models.load_model(str(p)).get_weights() for p in (path.parent / "model.keras", alone))
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    best = load_toml(tmp_path / "sweep" / "best.toml")
    top = max(records.values(), key=lambda r: r.objective or 0)
    assert best["epochs"] == top.epochs


# --- killed ----------------------------------------------------------------------------------------------------------


def arguments(log: Path, workdir: Path, algorithm: str, space: Path, *more: str) -> list[str]:
    settings = (f"data.items={log / 'items.csv'}", "epochs=2", "init_stddev=0.2")
    head = ["tune", "wals", "--data", f"parquet:{log / 'log.parquet'}", "--workdir", str(workdir), "--trials", "6"]
    words = [word for setting in settings for word in ("--set", setting)]
    return [*head, "--algorithm", algorithm, "--space", str(space), *words, *more]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["random", "grid"])
def test_a_killed_sweep_goes_on_as_if_nothing_had_happened(algorithm, log, tmp_path):
    space = tmp_path / "space.toml"
    tables = [[f"[{name}]", *(f"{key} = {json.dumps(v)}" for key, v in t.items())] for name, t in SPACE.items()]
    space.write_text("\n".join(line for lines in tables for line in lines))
    shelf = tmp_path / "killed"
    with (tmp_path / "log.txt").open("w") as output:
        process = subprocess.Popen(
            small_run.command(*arguments(log, shelf, algorithm, space)),
            stdout=output,
            stderr=output,
            env=small_run.environment(),
        )
    try:
        deadline = time.monotonic() + 120
        while len(list(shelf.glob("search/trials/*.json"))) < 3:  # the third has begun
            assert process.poll() is None, (tmp_path / "log.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    before = read_sweep(shelf).records()
    finished = [r for r in before if r.status == "completed"]
    assert len(finished) == 2
    assert not (shelf / "best.toml").exists()
    done = subprocess.run(
        small_run.command(*arguments(log, shelf, algorithm, space, "--resume")),
        capture_output=True,
        text=True,
        env=small_run.environment(),
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    after = read_sweep(shelf)
    assert [r.started for r in after.records()[:2]] == [r.started for r in finished]
    undisturbed = tune(read_sweep(shelf).config, tmp_path / "whole")
    assert facts(after) == facts(undisturbed)
    assert (shelf / "best.toml").read_text() == (tmp_path / "whole" / "best.toml").read_text()
    assert f"shortlist train wals --data parquet:{log / 'log.parquet'} --config {shelf / 'best.toml'}" in done.stdout


@pytest.mark.slow
def test_workers_beside_each_other_find_what_one_process_finds(log, tmp_path):
    alone = tune(wals(log, trials=4), tmp_path / "alone")
    beside = tune(wals(log, trials=4), tmp_path / "beside", workers=2)
    assert sorted(facts(alone)) == sorted(facts(beside))
    assert {r.worker for r in beside.records()} <= {"worker0", "worker1"}
    assert (tmp_path / "beside" / "best.toml").read_text() == (tmp_path / "alone" / "best.toml").read_text()
