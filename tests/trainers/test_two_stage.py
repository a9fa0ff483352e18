"""The whole pipeline on a log whose structure is known, the same without it, and a refit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Artifact
from shortlist.components.metrics import paired_bootstrap
from shortlist.trainers.two_stage import load_config, retrieval_only, two_stage

SEED = 3
Run = dict[str, Artifact]


def config(folder: Path, **settings: Any) -> Any:
    files = {"data.source": f"parquet:{folder / 'log.parquet'}", "data.items": str(folder / "items.parquet")}
    return load_config(overrides={**planted.SMALL, **files, "workdir": folder / "run", "seed": SEED, **settings})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the planted log lies."""
    folder = tmp_path_factory.mktemp("planted")
    planted.write(folder, planted.log())
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return two_stage(config(folder)).run()


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The pipeline on the same log with its items dealt out anew, so that nothing can be known of them."""
    columns = planted.log()
    columns["item"] = np.random.default_rng(1).permutation(columns["item"])
    folder = tmp_path_factory.mktemp("shuffled")
    planted.write(folder, columns)
    return two_stage(config(folder)).run()


@pytest.fixture(scope="module")
def refitted(folder: Path, run: Run) -> tuple[Any, Run]:
    pipeline = two_stage(config(folder, refit=True))
    return pipeline, pipeline.run(until=["Exporter"])


def per_user(run: Run, metric: str) -> dict[str, np.ndarray]:
    table = pq.read_table(run["Evaluator"] / "per_user.parquet").to_pandas()
    return {system: rows[metric].to_numpy() for system, rows in table.groupby("system", sort=False)}


def recommend(model: Any, k: int, users: list[str], histories: list[list[str]] | None = None) -> list[list[str]]:
    asked = {
        "user": tf.constant(users),
        "history": tf.constant(histories or [[""]] * len(users)),
        "exclude": tf.constant([[""]] * len(users)),
        "time": tf.fill([len(users)], tf.constant(-1, tf.int64)),
        "k": tf.fill([len(users)], k),
    }
    answer = model.signatures["recommend"](**asked)
    return [
        [i.decode() for i in line[:n]] for line, n in zip(*(answer[n].numpy() for n in ("items", "count")), strict=True)
    ]


def test_the_sources_find_the_blocks(run: Run) -> None:
    recall = per_user(run, "recall@30")
    for system in ("wals", "two_tower", "item_knn", "union"):
        _, low, _ = paired_bootstrap(recall[system], recall["popularity"])
        assert low > 0.3, system
    # Of a block's 60 items 27 are seen before test: chance within the block finds 30 of 33, chance without it 30 of 93.
    assert abs(recall["popularity"].mean() - 30 / 93) < 0.15
    assert recall["wals"].mean() > 0.8
    _, low, _ = paired_bootstrap(recall["union"], recall["wals"])
    assert low > -0.1


def test_the_ranker_finds_what_only_it_can_know(run: Run) -> None:
    metrics = run["Evaluator"].read_json("metrics.json")
    ndcg = {name: rows["ndcg@10"] for name, rows in metrics["systems"].items()}
    assert all(ndcg["two_stage"]["low"] > 2 * rows["high"] for name, rows in ndcg.items() if name != "two_stage")
    assert metrics["blessed"] is True
    assert metrics["reasons"] == []
    deciding = [c for c in metrics["comparisons"] if c["split"] == "validation" and c["system"] == "two_stage"]
    assert [c["against"] for c in deciding][::2] == ["popularity", "union"]
    assert len(deciding) == 3
    assert all(c["low"] > 0.1 and c["metric"] == "ndcg@10" for c in deciding)
    assert metrics["seed"] == SEED
    assert metrics["protocol"]["targets_outside_catalogue"] == pytest.approx(3 / 360)
    assert metrics["protocol"]["positives"] == {"rank_train": 720, "validation": 360, "test": 360}


def test_what_is_pushed_recommends_each_block_its_own(run: Run, folder: Path) -> None:
    pushed = run["Pusher"].read_json("pushed.json")
    assert pushed["pushed"] is True
    assert Path(pushed["path"]) == folder / "run" / "pushed" / "shortlist" / "1"
    model = tf.saved_model.load(pushed["path"])
    users = [planted.user(n) for n in range(planted.USERS)]
    watched: dict[str, set[str]] = {user: set() for user in users}
    for n, i in zip(*[planted.log()[c] for c in ("user", "item")], strict=True):
        watched[planted.user(n)].add(planted.item(i))
    found = recommend(model, 8, users)
    assert all(len(set(items)) == 8 for items in found)
    assert not any(set(items) & watched[user] for user, items in zip(users, found, strict=True))
    right = [planted.block(i) == planted.block(user) for user, items in zip(users, found, strict=True) for i in items]
    assert np.mean(right) > 0.95
    new = [planted.is_new(int(i.split()[1])) for items in found for i in items]
    assert np.mean(new) > 0.9  # of each block 30, of which everybody has seen 21

    strangers = [[planted.item(2 * n + b) for n in (3, 9, 16, 21, 28)] for b in (0, 1)]
    for b, items in enumerate(recommend(model, 10, ["", ""], strangers)):
        assert {planted.block(i) for i in items} == {b}


def test_without_structure_nothing_is_blessed_or_pushed(shuffled: Run) -> None:
    blessing = shuffled["Evaluator"].read_json("blessing.json")
    assert blessing["blessed"] is False
    against = [c for c in blessing["comparisons"] if c["split"] == "validation" and c["system"] == "two_stage"]
    failed = [c for c in against if c["low"] <= 0]
    assert failed
    assert len(blessing["reasons"]) == len(failed)
    for reason, c in zip(blessing["reasons"], failed, strict=True):
        assert reason.startswith(f"NDCG@10 on validation is not above that of {c['against']}: {c['difference']:+.4f} [")
    pushed = shuffled["Pusher"].read_json("pushed.json")
    assert (pushed["pushed"], pushed["path"], pushed["version"]) == (False, None, None)
    assert pushed["reasons"] == [f"The evaluation does not bless it: {reason}" for reason in blessing["reasons"]]
    assert not (shuffled["Pusher"].uri.parents[2] / "pushed").exists()
    recall = per_user(shuffled, "recall@30")
    for system in ("wals", "two_tower", "union"):
        _, low, _ = paired_bootstrap(recall[system], recall["popularity"])
        assert low < 0.05, system
    report = (shuffled["Reporter"] / "report.md").read_text()
    assert "**Not blessed.** NDCG@10 on validation is not above" in report


def test_a_second_run_is_cached_and_a_change_runs_only_what_it_reaches(run: Run, folder: Path) -> None:
    again = two_stage(config(folder))
    assert {name: a.fingerprint for name, a in again.run().items()} == {n: a.fingerprint for n, a in run.items()}
    assert again.ran == []
    changed = two_stage(config(folder, **{"ranker.epochs": 1}))
    changed.run(until=["Trainer.weighted_logistic"])
    assert changed.ran == ["Trainer.weighted_logistic"]


def test_a_refit_knows_the_later_splits_and_leaves_the_ranker(run: Run, refitted: tuple[Any, Run]) -> None:
    pipeline, artifacts = refitted
    names = ("wals", "two_tower", "ease")
    retrained = {step for name in names for step in (f"Trainer.refit.{name}", f"RetrievalIndex.refit.{name}")}
    assert set(pipeline.ran) == {"Transform.refit", "Exporter", *retrained}
    for step in ("Trainer.weighted_logistic", "CandidateGenerator", "Evaluator", "Reporter"):
        assert artifacts.get(step, run[step]).fingerprint == run[step].fingerprint
    late = planted.item(planted.LATE_ITEM)
    measured, everything = EncodedData(run["Transform"]), EncodedData(artifacts["Transform.refit"])
    assert late not in measured.items["id"]
    assert late in everything.items["id"]
    assert artifacts["Trainer.refit.wals"].read_json("model.json")["trained_on"] == "all"
    assert run["Trainer.wals"].read_json("model.json")["trained_on"] == "train"

    before = tf.saved_model.load(str(run["Exporter"] / "saved_model"))
    after = tf.saved_model.load(str(artifacts["Exporter"] / "saved_model"))
    asker, enough = [planted.user(6)], planted.ITEMS + 1
    assert late not in recommend(before, enough, asker)[0]
    assert late in recommend(after, enough, asker)[0]
    assert len(recommend(after, enough, asker)[0]) == len(recommend(before, enough, asker)[0]) + 1
    found = recommend(after, 8, [planted.user(n) for n in range(planted.USERS)])
    right = [planted.block(i) == n % 2 for n, items in enumerate(found) for i in items]
    assert np.mean(right) > 0.95


def test_retrieval_alone_gives_the_same_figures(run: Run, folder: Path) -> None:
    pipeline = retrieval_only(config(folder))
    done = pipeline.run()
    metrics = done["Evaluator"].read_json("metrics.json")
    assert pipeline.ran == ["Evaluator", "Reporter"]
    assert "There is no ranking, and no bundle." in (done["Reporter"] / "report.md").read_text()
    assert metrics["blessed"] is False
    assert metrics["reasons"] == ["There is no ranker, so there is nothing to bless."]
    assert metrics["comparisons"] == []
    full = json.loads((run["Evaluator"] / "metrics.json").read_text())["systems"]
    assert metrics["systems"] == {name: full[name] for name in full if name not in ("union", "two_stage")}
