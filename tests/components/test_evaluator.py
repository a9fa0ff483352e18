"""The evaluation against loops over the scores, the rule of blessing, and what is refused.

Past 400 lines because all of it is held against one small world that is built here.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pyarrow.parquet as pq
import pytest
import tables
import tensorflow as tf
from fixed_models import FixedIndex, FixedRanker, encoded, random_parts, random_scores, with_impressions
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components._config import parse
from shortlist.components._first_stage import ShortlistConfig, retrieve
from shortlist.components._judge import Judged
from shortlist.components._queries import EncodedData, build_queries
from shortlist.components._second_stage import by_odds, score_shortlists
from shortlist.components.artifacts import Artifact
from shortlist.components.candidate_generator import CandidateGenerator
from shortlist.components.evaluator import METRICS, EvaluationConfig, Evaluator, best_items
from shortlist.components.metrics import paired_bootstrap
from shortlist.components.pipeline import Node, Pipeline

SEEDS = {"popularity": 1, "popularity_recent": 2, "item_knn": 3, "left": 4, "right": 5}
BASELINES, SOURCES = ("popularity", "popularity_recent", "item_knn"), ("left", "right")
CUTOFFS = (3, 10)


class Small:
    """The steps before the evaluation, with scores that are given."""

    def __init__(self, workdir: Path, parts: dict[str, list[tables.Row]], **ranker: Any):
        self.pipeline = Pipeline(workdir)
        self.encoded = encoded(self.pipeline, parts)
        self.baselines = {name: self.index(name) for name in BASELINES}
        self.sources = {name: self.index(name) for name in SOURCES}
        self.candidates = self.shortlist("", self.sources)
        self.ranker = self.pipeline.add(FixedRanker(**ranker), self.candidates)

    def index(self, name: str, **config: Any) -> Node:
        return self.pipeline.add(FixedIndex(name, SEEDS.get(name, 9), **config), self.encoded)

    def shortlist(self, name: str, sources: dict[str, Node], size: int = 12) -> Node:
        generator = CandidateGenerator(ShortlistConfig(size=size, quota=9), name)
        return self.pipeline.add(generator, self.encoded, sources)

    def evaluate(self, **changed: Any) -> Artifact:
        config = changed.pop("config", {})
        inputs = {
            name: changed.get(name, getattr(self, name)) for name in ("baselines", "sources", "candidates", "ranker")
        }
        node = self.pipeline.add(
            Evaluator(EvaluationConfig(**{"cutoffs": CUTOFFS, "samples": 300, **config})), self.encoded, **inputs
        )
        return self.pipeline.run(until=[node.step])[node.step]


@pytest.fixture(scope="module")
def parts() -> dict[str, list[tables.Row]]:
    """With an item that only test has, a user without targets and one without a history."""
    parts = random_parts(2, items=30)
    parts["test"][0]["item"] = "only in test"
    parts["test"] = [r for r in parts["test"] if r["user"] != "user 05"]
    parts["test"].append(tables.row("user 99", "item 03", 1_600_000_000))
    return parts


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, list[tables.Row]]) -> tuple[Small, Artifact]:
    small = Small(tmp_path_factory.mktemp("small"), parts)
    return small, small.evaluate(config={"run_seed": 7})


def catalogue(parts: Any) -> set[str]:
    return {r["item"] for r in parts["train"]}


def users(parts: Any) -> list[str]:
    return sorted({r["user"] for r in parts["test"]})


def copy(small: Small) -> Small:
    """The same steps once more, to be evaluated otherwise; they are cached."""
    other = object.__new__(Small)
    other.__dict__ |= vars(small)
    other.pipeline = Pipeline(small.pipeline.workdir)
    other.pipeline.steps = {name: step for name, step in small.pipeline.steps.items() if name != "Evaluator"}
    return other


def ranked_by_loop(run: dict[str, Artifact], parts: Any, split: str) -> dict[str, dict[str, list[int]]]:
    """By system and user, the best items: their rows, seen ones left out."""
    data = EncodedData(run["Transform"])
    row = {item: n for n, item in enumerate(data.items["id"]) if n >= 2}
    users = (run["Transform"] / "users.txt").read_text().splitlines()
    number = {user: n for n, user in enumerate(users, 2)}
    before = [r for name in parts if list(parts).index(name) < list(parts).index(split) for r in parts[name]]
    found: dict[str, dict[str, list[int]]] = {}
    for name in (*BASELINES, *SOURCES):
        table = random_scores(SEEDS[name], data.num_users, data.num_items)
        found[name] = {}
        for user in sorted({r["user"] for r in parts[split]}):
            seen = {row.get(r["item"]) for r in before if r["user"] == user}
            scores = table[number.get(user, 1)]
            allowed = [i for i in range(2, data.num_items) if i not in seen]
            found[name][user] = sorted(allowed, key=lambda i: (-scores[i], i))
    with np.load(run["CandidateGenerator"] / f"{split}.npz") as candidates:
        for q, key in enumerate(candidates["user_key"]):
            user, items = data.users["id"][key], [int(i) for i in candidates["items"][q] if i >= 2]
            found.setdefault("union", {})[user] = items
            found.setdefault("two_stage", {})[user] = items  # the ranker keeps the order of the fusion
    return found


def targets(run: dict[str, Artifact], parts: Any, split: str) -> dict[str, list[int]]:
    row = {item: n for n, item in enumerate(EncodedData(run["Transform"]).items["id"]) if n >= 2}
    found: dict[str, list[int]] = {}
    for r in parts[split]:
        found.setdefault(r["user"], []).append(row.get(r["item"], 1))
    return found


def test_every_figure_equals_the_loop(small: tuple[Small, Artifact], parts: Any) -> None:
    steps, artifact = small
    run = steps.pipeline.run()
    metrics = artifact.read_json("metrics.json")
    lists, wanted = ranked_by_loop(run, parts, "test"), targets(run, parts, "test")
    table = pq.read_table(artifact / "per_user.parquet").to_pylist()
    rows = {(r["system"], r["user"]): r for r in table}
    number = {item: n for n, item in enumerate(EncodedData(run["Transform"]).items["id"]) if n >= 2}
    counts = np.bincount([number[r["item"]] for r in parts["train"]], minlength=len(number) + 2)  # no item twice a user
    genres = np.ones((len(counts), 1))
    earlier = [r for name in ("train", "rank_train", "validation") for r in parts[name] if r["item"] in number]
    history = {user: [number[r["item"]] for r in earlier if r["user"] == user] for user in wanted}
    assert list(metrics["systems"]) == list(lists) == [*BASELINES, *SOURCES, "union", "two_stage"]
    assert len(table) == len(rows) == len(lists) * len(wanted)
    for system, by_user in lists.items():
        figures = metrics["systems"][system]
        names = (
            *METRICS,
            "novelty",
            "diversity",
            "popularity_bias",
            "coverage",
            "gini",
        )
        assert set(figures) == {f"{m}@{k}" for m in names for k in CUTOFFS}
        for k in CUTOFFS:
            own = {
                user: oracles.ranking_metrics(items, wanted[user], k)
                | oracles.list_metrics(items, k, counts, 12, genres, counts, history[user])
                for user, items in by_user.items()
            }
            for metric in names[:-2]:
                values = np.array([own[user][metric] for user in sorted(own)])
                found = [rows[system, u][f"{metric}@{k}"] for u in sorted(own)]
                np.testing.assert_allclose(found, values, atol=1e-12)
                mean, low, high = oracles.bootstrap_mean(values, 300, 0)
                figure, users = figures[f"{metric}@{k}"], len(wanted) - (metric == "popularity_bias")
                assert figure == pytest.approx({"value": mean, "low": low, "high": high, "users": users}, abs=1e-12)
            shown = {i for items in by_user.values() for i in items[:k]}
            assert figures[f"coverage@{k}"] == {"value": pytest.approx(len(shown) / len(catalogue(parts)))}
            gini = oracles.gini(list(by_user.values()), k, len(catalogue(parts)))
            assert figures[f"gini@{k}"] == {"value": pytest.approx(gini)}


def test_the_form_of_what_is_written(small: tuple[Small, Artifact], parts: Any) -> None:
    _, artifact = small
    metrics = artifact.read_json("metrics.json")
    names = ("data", "split", "seed", "blessed", "reasons", "systems", "comparisons", "protocol", "shortlist")
    assert tuple(metrics) == names
    assert (metrics["data"], metrics["split"], metrics["seed"]) == ("given", "test", 7)
    blessing = artifact.read_json("blessing.json")
    assert blessing == {key: metrics[key] for key in ("blessed", "reasons", "comparisons")}
    protocol = metrics["protocol"]
    assert protocol["targets"] == len(parts["test"]) == 23
    outside = [r for r in parts["test"] if r["item"] not in catalogue(parts)]
    assert len(outside) > 1
    assert protocol["targets_outside_catalogue"] == pytest.approx(len(outside) / 23)
    assert protocol["users"] == 12
    assert protocol["users_with_history"] == 11
    assert protocol["catalogue"] == len(catalogue(parts)) == 26
    assert protocol["strategy"] == "per_user_time"
    assert protocol["notes"] == ["FixedIndex.left is fixed.", "FixedIndex.right is fixed.", "A fixed order."]
    assert re.fullmatch("[0-9a-f]{16}", protocol["targets_digest"])
    assert protocol["positives"] == {"rank_train": 36, "validation": 24, "test": 23}


def test_comparisons_are_paired_differences(small: tuple[Small, Artifact], parts: Any) -> None:
    steps, artifact = small
    run = steps.pipeline.run()
    comparisons = artifact.read_json("metrics.json")["comparisons"]
    expected = []
    for split in ("test", "validation"):
        lists, wanted = ranked_by_loop(run, parts, split), targets(run, parts, split)

        def values(system: str, metric: str, lists=lists, wanted=wanted) -> np.ndarray:
            kind, _, k = metric.partition("@")
            return np.array(
                [oracles.ranking_metrics(lists[system][u], wanted[u], int(k))[kind] for u in sorted(wanted)]
            )

        simple = max(["item_knn", *SOURCES], key=lambda s, v=values: v(s, "ndcg@10").mean())
        deepest = max(SOURCES, key=lambda s, v=values: v(s, "recall@10").mean())
        for system, against, metric in (
            *(("two_stage", rival, "ndcg@10") for rival in ("popularity", simple, "union")),
            *(("union", rival, "recall@10") for rival in ("popularity", deepest)),
        ):
            mean, low, high = paired_bootstrap(values(system, metric), values(against, metric), 300, 0)
            found = {"split": split, "metric": metric, "system": system, "against": against}
            p = oracles.sign_flip_p(values(system, metric) - values(against, metric))  # 12 users: all 4,096 throws
            found |= {"difference": mean, "low": low, "high": high, "p": p, "users": len(wanted)}
            expected.append(found)
    assert len(comparisons) == 10
    for five in (expected[:5], expected[5:]):
        for row, p in zip(five, oracles.holm([row["p"] for row in five]), strict=True):
            row["p_holm"] = p
    for ours, theirs in zip(comparisons, expected, strict=True):
        assert ours == pytest.approx(theirs)
    assert comparisons[2]["p"] == comparisons[2]["p_holm"] == 1
    assert comparisons[2]["difference"] == 0  # the ranker keeps the order of the fusion
    reasons = artifact.read_json("metrics.json")["reasons"]
    assert reasons[-2:] == [
        "NDCG@10 on validation is not above that of union: +0.0000 [+0.0000, +0.0000], 12 users.",
        "A bootstrap over 12 users says little: at least 20 must have a positive.",
    ]


def test_both_orders_of_the_shortlists_are_judged_on_the_same_impressions(small: tuple[Small, Artifact]) -> None:
    steps, artifact = small
    run = steps.pipeline.run()
    judged = artifact.read_json("metrics.json")["shortlist"]
    with np.load(run["CandidateGenerator"] / "test.npz") as table:
        items, label, weight, fused = (table[name] for name in ("items", "label", "weight", "fused"))
        names = run["CandidateGenerator"].read_json("candidates.json")["feature_names"]
        odds = -table["features"][..., names.index("log_fused_rank")].astype(np.float64)
    there = items >= 2
    assert (judged["weight_from"], judged["impressions"]) == ("none", there.sum())
    assert judged["positives"] == label.sum() > 0
    rows = {(r["system"], r["user"]): r for r in pq.read_table(artifact / "per_user.parquet").to_pylist()}
    users = sorted({user for _, user in rows})
    for system, scores in (("union", fused), ("two_stage", odds)):
        pairs = [
            oracles.lost_pairs(s[t], y[t], w[t], np.zeros(t.sum()))
            for s, y, w, t in zip(scores, label, weight, there, strict=True)
        ]
        loss = np.array([lost / total if total else np.nan for lost, total in pairs])  # every positive weighs 1
        for metric, values in (("weighted_user_loss", loss), ("user_auc", 1 - loss)):
            np.testing.assert_allclose([rows[system, u][metric] for u in users], values)
            mean, low, high = oracles.bootstrap_mean(values, 300, 0)
            figure = {"value": mean, "low": low, "high": high, "users": np.isfinite(values).sum()}
            assert judged["systems"][system][metric] == pytest.approx(figure)
        lost, total = np.sum(pairs, axis=0)
        assert judged["systems"][system]["watch_time_lost"] == {"value": pytest.approx(lost / total)}
        everything = oracles.lost_pairs(scores[there], label[there], np.ones(there.sum()), np.zeros(there.sum()))
        assert judged["systems"][system]["auc"]["value"] == pytest.approx(1 - everything[0] / everything[1])
    assert np.isnan([rows[system, u]["user_auc"] for system in BASELINES for u in users]).all()
    assert sum(judged["calibration"]["rows"]) == there.sum()
    watch = 1 / (1 + np.exp(-odds[there]))
    loss = -np.mean(np.where(label[there], np.log(watch), np.log(1 - watch)))
    assert judged["log_loss"] == pytest.approx(loss, rel=1e-5)
    assert "impressions" not in artifact.read_json("metrics.json")


@pytest.fixture(scope="module")
def shown_parts(parts: dict[str, list[tables.Row]]) -> dict[str, list[tables.Row]]:
    """A log with impressions: one user was only shown things in test."""
    found = with_impressions(parts)
    for r in found["test"]:
        if r["user"] == "user 02":
            r |= {"event": "impression", "watch_time": None}
    return found


FACTS = {"expected_watch_time": {"unit": 60.0}, "learned_from_shown": True, "config": {"watch_time_unit": 60.0}}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, shown_parts: Any) -> tuple[Small, Artifact]:
    small = Small(tmp_path_factory.mktemp("shown"), shown_parts, facts=FACTS)
    return small, small.evaluate()


def test_the_order_of_what_was_shown_is_judged_by_pages(shown: tuple[Small, Artifact], shown_parts: Any) -> None:
    steps, artifact = shown
    run = steps.pipeline.run()
    metrics = artifact.read_json("metrics.json")
    judged = metrics["impressions"]
    about = {"weight_from": "watch_time", "expected_watch_time": {"unit": 60.0}, "learned_from_shown": True}
    assert about.items() <= judged.items()
    assert about.items() <= metrics["shortlist"].items()
    data = EncodedData(run["Transform"])
    with np.load(run["CandidateGenerator"] / "test.shown.npz") as table:
        place = run["CandidateGenerator"].read_json("candidates.json")["feature_names"].index("log_fused_rank")
        logit = -table["features"][:, place].astype(np.float64)
        who = data.users["id"][table["user_key"][table["owner"]]]
        items, pages = data.items["id"][table["item"]], table["time"]
        everybody = data.users["id"][table["user_key"]].tolist()
    row = {(r["user"], r["item"]): r for r in shown_parts["test"]}
    rows = [row[pair] for pair in zip(who, items, strict=True)]
    watched = np.array([r["event"] == "watch" for r in rows])
    weight = np.array([r.get("watch_time") or 0 for r in rows])
    assert [r["timestamp"] for r in rows] == pages.tolist()
    known = [r for r in shown_parts["test"] if r["item"] in catalogue(shown_parts)]
    assert (judged["impressions"], judged["positives"]) == (len(known), sum(r["event"] == "watch" for r in known))
    assert judged["users"] == len(everybody) == len(users(shown_parts)) > metrics["protocol"]["users"]

    per_user = {(r["system"], r["user"]): r for r in pq.read_table(artifact / "per_user.parquet").to_pylist()}
    lost = np.zeros((len(everybody), 2))
    auc = np.full(len(everybody), np.nan)
    for q, user in enumerate(everybody):
        own = who == user
        lost[q] = oracles.lost_pairs(logit[own], watched[own], weight[own], pages[own])
        wrong, pairs = oracles.lost_pairs(logit[own], watched[own], np.ones(own.sum()), np.zeros(own.sum()))
        auc[q] = 1 - wrong / pairs if pairs else np.nan
    loss = np.array([a / b if b else np.nan for a, b in lost])
    assert 0 < np.isfinite(loss).sum() < np.isfinite(auc).sum()  # some pages have no pair
    for metric, values in (("weighted_user_loss", loss), ("user_auc", auc)):
        mean, low, high = oracles.bootstrap_mean(values, 300, 0)
        figure = {"value": mean, "low": low, "high": high, "users": np.isfinite(values).sum()}
        assert judged["systems"]["two_stage"][metric] == pytest.approx(figure)
        for user, value in zip(everybody, values, strict=True):
            if ("two_stage", user) in per_user:  # whoever has no positive has no row
                assert per_user["two_stage", user][f"shown_{metric}"] == pytest.approx(value, nan_ok=True)
    assert ("two_stage", "user 02") not in per_user
    assert np.isnan([r["shown_user_auc"] for (system, _), r in per_user.items() if system != "two_stage"]).all()
    of_all = judged["systems"]["two_stage"]
    assert of_all["watch_time_lost"]["value"] == pytest.approx(lost[:, 0].sum() / lost[:, 1].sum())
    wrong, pairs = oracles.lost_pairs(logit, watched, np.ones(len(logit)), np.zeros(len(logit)))
    assert of_all["auc"]["value"] == pytest.approx(1 - wrong / pairs)

    watch = 1 / (1 + np.exp(-logit))
    assert judged["log_loss"] == pytest.approx(-np.mean(np.log(np.where(watched, watch, 1 - watch))), rel=1e-5)
    expected = 60 * 2 * watch.astype(np.float32).astype(np.float64)  # a watch takes two minutes, in seconds
    found = judged["calibration"]
    for n, (bucket, (count, x, y)) in enumerate(oracles.calibration(expected.tolist(), weight.tolist(), 10).items()):
        assert (found["bucket"][n], found["rows"][n]) == (bucket, count)
        assert (found["expected"][n], found["actual"][n]) == pytest.approx((x, y), rel=1e-5)


def test_of_nothing_that_was_shown_nothing_is_said() -> None:
    none = np.zeros(0)
    judged = Judged(none.astype(int), none.astype(int), none.astype(bool), none)
    assert judged.of_all(none, 3, "ranker") == {}
    assert {name: np.isnan(v).tolist() for name, v in judged.of_users(none, 3, "ranker").items()} == {
        "user_auc": [True] * 3,
        "weighted_user_loss": [True] * 3,
    }
    scores = {name: none.astype(np.float32) for name in ("odds", "watch", "expected")}
    assert judged.of_ranker(scores, 60.0, "ranker") == {"positives": 0, "impressions": 0}


def test_without_weights_there_is_no_watch_time_to_calibrate(shown: tuple[Small, Artifact]) -> None:
    steps = copy(shown[0])
    facts = {"config": {"weighted": False}, "expected_watch_time": None, "learned_from_shown": False}
    ranker = steps.pipeline.add(FixedRanker("unweighted", facts=facts), steps.candidates)
    metrics = steps.evaluate(ranker=ranker).read_json("metrics.json")
    for part in ("shortlist", "impressions"):
        assert "calibration" not in metrics[part]
        assert (metrics[part]["expected_watch_time"], metrics[part]["learned_from_shown"]) == (None, False)
        wanted = shown[1].read_json("metrics.json")[part]
        assert {name: metrics[part][name] for name in ("systems", "log_loss")}.items() <= wanted.items()


def test_the_slices_are_written(small: tuple[Small, Artifact], parts: Any) -> None:
    _, artifact = small
    table = pq.read_table(artifact / "slices.parquet").to_pylist()
    got = {(r["slice"], r["part"], r["system"], r["metric"]): r for r in table}
    rows = pq.read_table(artifact / "per_user.parquet").to_pylist()
    values = np.array([r["ndcg@3"] for r in rows if r["system"] == "left" and r["user"] != "user 99"])
    mean, low, high = oracles.bootstrap_mean(values, 300, 0)
    numbers = {"value": mean, "low": low, "high": high, "users": 11}
    key = {"slice": "cold_user", "part": "warm", "system": "left", "metric": "ndcg@3"}
    assert got[tuple(key.values())] == pytest.approx({**key, **numbers})
    assert {part for name, part, _, _ in got if name == "cold_user"} == {"none", "warm"}  # nobody's history is short
    assert {system for _, _, system, _ in got} == {*BASELINES, *SOURCES, "union", "two_stage"}
    new = [r for (name, part, _, metric), r in got.items() if (name, part, metric) == ("cold_item", "new", "recall@10")]
    assert len(new) == 7
    assert all(r["value"] == 0 for r in new)  # what is not in the catalogue is never found


def compared(against: str, low: float, split: str = "validation", system: str = "two_stage") -> dict[str, Any]:
    pair = {"split": split, "metric": "ndcg@10", "system": system, "against": against}
    return {**pair, "difference": low + 0.02, "low": low, "high": low + 0.04, "users": 1200}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-0.01, 0.0, float("nan"), 1e-9, 0.5]), min_size=3, max_size=3))
def test_blessed_means_above_each_of_the_three(lows: list[float]) -> None:
    rivals = ["popularity", "wals", "union"]
    others = [compared("popularity", -1.0, split="test"), compared("wals", -1.0, system="union")]
    blessed, reasons = Evaluator._bless([*others, *map(compared, rivals, lows)], True)
    failed = [rival for rival, low in zip(rivals, lows, strict=True) if not low > 0]
    assert blessed == (not failed)
    assert [re.match(r"NDCG@10 on validation is not above that of (\w+): ", r)[1] for r in reasons] == failed


def test_reasons_by_hand() -> None:
    three = [compared("popularity", 0.1), compared("wals", -0.0123), compared("union", 0.2)]
    assert Evaluator._bless(three, True) == (
        False,
        ["NDCG@10 on validation is not above that of wals: +0.0077 [-0.0123, +0.0277], 1200 users."],
    )
    assert Evaluator._bless([compared("wals", 0.1), compared("union", 0.2)], True) == (
        False,
        ["There is no baseline `popularity` to compare with."],
    )
    few = [{**compared(rival, 0.1), "users": 19} for rival in ("popularity", "wals", "union")]
    assert Evaluator._bless(few, True) == (
        False,
        ["A bootstrap over 19 users says little: at least 20 must have a positive."],
    )
    assert Evaluator._bless([{**c, "users": 20} for c in few], True) == (True, [])
    assert Evaluator._bless([compared("popularity", 0.1, split="test")], True) == (
        False,
        ["There is no positive in validation, which decides. Give it a share: split.validation."],
    )
    assert Evaluator._bless([], False) == (False, ["There is no ranker, so there is nothing to bless."])


def test_a_ranker_that_reverses_is_measured_as_such(tmp_path: Path, parts: Any) -> None:
    steps = Small(tmp_path, parts, scale=1.0)
    artifact = steps.evaluate()
    run = steps.pipeline.run(until=["FixedRanker"])
    with np.load(run["CandidateGenerator"] / "test.npz") as table:
        items, features = table["items"], table["features"]
    expected = [[i for i in line[::-1] if i] + [i for i in line if not i] for line in items.tolist()]
    tables_ = {"test": {"features": features, "items": items, "history": np.zeros((len(items), 3), np.int32)}}
    found = score_shortlists(run["FixedRanker"], tables_, batch_size=5)["test"]
    np.testing.assert_array_equal(by_odds(items, found["odds"]), expected)
    assert found.keys() == {"odds", "watch", "expected"}
    np.testing.assert_allclose(1 / (1 + np.exp(-found["odds"])), found["watch"], rtol=1e-5)
    np.testing.assert_array_equal(2 * found["watch"], found["expected"])
    wanted = targets(run, parts, "test")
    values = [
        oracles.ranking_metrics(line, wanted[user], 3)["ndcg"]
        for user, line in zip(sorted(wanted), expected, strict=True)
    ]
    figure = artifact.read_json("metrics.json")["systems"]["two_stage"]["ndcg@3"]
    assert figure["value"] == pytest.approx(np.mean(values))


def test_retrieval_alone(small: tuple[Small, Artifact]) -> None:
    steps = copy(small[0])
    metrics = steps.evaluate(candidates=None, ranker=None).read_json("metrics.json")
    full = small[1].read_json("metrics.json")["systems"]
    assert metrics["systems"] == {name: full[name] for name in (*BASELINES, *SOURCES)}
    assert metrics["comparisons"] == []
    assert metrics["blessed"] is False


class Factorized(tf.Module):
    """A loaded index whose scores are products of whole numbers: exact, and many of them tied."""

    def __init__(self, users: int, items: int):
        super().__init__()
        rng = np.random.default_rng(0)
        self.users, self.items = (rng.integers(-3, 4, (n, 2)).astype(np.float32) for n in (users, items))
        self.retriever, self.calls = self, 0

    def embed_query(self, query: dict[str, np.ndarray]) -> tf.Tensor:
        self.calls += 1
        return tf.gather(self.users, query["user"])

    def item_vectors(self) -> tf.Tensor:
        return tf.constant(self.items)

    def scores(self, query: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.matmul(self.embed_query(query), self.items, transpose_b=True)


def test_products_in_blocks_give_the_lists_of_the_scores(small: tuple[Small, Artifact]) -> None:
    data = EncodedData(small[0].pipeline.run()["Transform"])
    queries, index = build_queries(data, "test"), Factorized(data.num_users, data.num_items)
    found = best_items(index, queries, 30, "wals", batch_size=5)
    assert index.calls == 3
    np.testing.assert_array_equal(found, retrieve(index.scores, queries, 30, "wals"))
    assert (found == 0).any()  # fewer than 30 unseen items
    index.items[7] = np.nan
    with pytest.raises(ShortlistError, match=r"^`wals` scores items with NaN"):
        best_items(index, queries, 30, "wals")


def test_a_split_without_positives_is_refused(tmp_path: Path, parts: Any) -> None:
    steps = Small(tmp_path, {**parts, "test": [], "validation": []})
    with pytest.raises(ShortlistError) as error:
        steps.evaluate()
    assert str(error.value) == (
        "`evaluation.split` must have a positive. Received: test, which has none. Give it a share, such as "
        "--set split.test=0.1."
    )


def test_without_validation_nothing_is_blessed(tmp_path: Path, parts: Any) -> None:
    metrics = Small(tmp_path, {**parts, "validation": []}).evaluate().read_json("metrics.json")
    assert metrics["blessed"] is False
    assert metrics["reasons"] == [
        "There is no positive in validation, which decides. Give it a share: split.validation."
    ]
    assert {c["split"] for c in metrics["comparisons"]} == {"test"}
    assert metrics["systems"]["two_stage"]["ndcg@10"]["users"] == 12


def test_one_user(tmp_path: Path, parts: Any) -> None:
    alone = {
        name: [r for r in rows if name in ("train", "rank_train") or r["user"] == "user 03"]
        for name, rows in parts.items()
    }
    metrics = Small(tmp_path, alone).evaluate().read_json("metrics.json")
    for rows in metrics["systems"].values():
        figure = rows["recall@10"]
        assert figure["users"] == 1
        assert figure["value"] == figure["low"] == figure["high"]
        assert figure["value"] in (0.0, 0.5, 1.0)


def test_scores_that_are_not_numbers_are_refused_by_name(small: tuple[Small, Artifact]) -> None:
    steps = copy(small[0])
    broken = {"broken": steps.index("broken", nan=True)}
    with pytest.raises(ShortlistError, match=r"^`broken` scores items with NaN.*NaN among test's queries 0 to 11\.$"):
        steps.evaluate(baselines={**steps.baselines, **broken})
    steps = copy(small[0])
    ranker = steps.pipeline.add(FixedRanker("nan", scale=float("nan")), steps.candidates)
    with pytest.raises(ShortlistError, match=r"^`ranker` scores candidates with NaN.*NaN for 12 of 12 queries"):
        steps.evaluate(ranker=ranker)


def test_a_cutoff_beyond_the_catalogue_is_refused(small: tuple[Small, Artifact], parts: Any) -> None:
    with pytest.raises(ShortlistError) as error:
        copy(small[0]).evaluate(config={"cutoffs": (10, 27)})
    assert str(error.value) == "`evaluation.cutoffs` must be at most the 26 items of the catalogue. Received: 27."
    deep = copy(small[0]).evaluate(config={"cutoffs": (26,)}).read_json("metrics.json")["systems"]
    # Every target that is in the catalogue is found there, and no other one.
    found = [np.mean([r["item"] in catalogue(parts) for r in parts["test"] if r["user"] == u]) for u in users(parts)]
    assert deep["popularity"]["recall@26"]["value"] == pytest.approx(np.mean(found))


def test_names_must_differ(small: tuple[Small, Artifact]) -> None:
    for reserved, group in (("two_stage", "sources"), ("union", "baselines")):
        steps = copy(small[0])
        with pytest.raises(ShortlistError, match=f"neither may be two_stage or union. Received: {reserved} twice"):
            steps.evaluate(**{group: {**getattr(steps, group), reserved: steps.index(reserved)}})
    steps = copy(small[0])
    with pytest.raises(ShortlistError, match=r"need names of their own.*Received: left twice"):
        steps.evaluate(baselines={**steps.baselines, "left": steps.sources["left"]})


def test_artifacts_of_different_models_are_refused(small: tuple[Small, Artifact]) -> None:
    steps = copy(small[0])
    other = steps.shortlist("other", steps.sources, size=5)
    with pytest.raises(ShortlistError, match=r"\(Model\) was not made from .* \(Candidates\)"):
        steps.evaluate(ranker=steps.pipeline.add(FixedRanker("other"), other), candidates=steps.candidates)
    steps = copy(small[0])
    with pytest.raises(ShortlistError, match=r"\(Candidates\) was not made from .* \(Index\)"):
        steps.evaluate(sources={**steps.sources, "third": steps.index("third")})


def test_an_index_of_another_encoding_is_refused(tmp_path: Path, small: tuple[Small, Artifact]) -> None:
    steps = copy(small[0])
    other = encoded(steps.pipeline, random_parts(8), "other")
    foreign = steps.pipeline.add(FixedIndex("foreign", 1), other)
    with pytest.raises(ShortlistError, match=r"\(Index\) was not made from .* \(Encoded\)"):
        steps.evaluate(baselines={**steps.baselines, "foreign": foreign})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cutoffs": []}, "`cutoffs` must be at least one number from 1 up. Received: ()."),
        ({"cutoffs": [10, 0]}, "`cutoffs` must be at least one number from 1 up. Received: (10, 0)."),
        ({"split": "train"}, "`split` of"),
        ({"samples": 5}, "`samples` of"),
        ({"cutofs": [1]}, "Did you mean `cutoffs`?"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ShortlistError, match=re.escape(message)):
        parse(EvaluationConfig, values, "evaluation")


def test_cutoffs_are_sorted_once() -> None:
    assert parse(EvaluationConfig, json.loads('{"cutoffs": [20, 5, 20]}')).cutoffs == (5, 20)
