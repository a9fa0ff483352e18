"""Paired differences between runs, from evaluations written by hand, and the runs that are no pairs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shortlist import ShortlistError
from shortlist.components.compare import compare

USERS = [f"user {n}" for n in range(9)]
RNG = np.random.default_rng(1)
NDCG = {name: RNG.random(9) for name in ("wals", "two_stage", "better wals", "better two_stage")}


def evaluation(folder: Path, values: dict[str, np.ndarray], users: list[str] = USERS, **changed: Any) -> Path:
    """By system NDCG@10, recall@100 its half; of `two_stage` one user has an AUC. Rows are shuffled."""
    folder.mkdir()
    parts = []
    for system, ndcg in values.items():
        auc = np.full(len(users), np.nan)
        auc[0] = 0.5 if system == "two_stage" else np.nan
        parts.append({"user": users, "system": [system] * len(users), "ndcg@10": ndcg, "recall@20": ndcg})
        parts[-1] |= {"recall@100": ndcg / 2, "user_auc": auc}
    table = pa.concat_tables([pa.table(part) for part in parts])
    order = np.concatenate([n * len(users) + RNG.permutation(len(users)) for n in range(len(values))])
    pq.write_table(table.take(order), folder / "per_user.parquet")
    protocol = {"strategy": "per_user_time", "positive_threshold": None, "targets": 20, "targets_digest": "ab"}
    found = {"data": "demo", "split": "test", "protocol": {**protocol, **changed.pop("protocol", {})}, **changed}
    (folder / "metrics.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    old = {"popularity": NDCG["wals"] - 1, "wals": NDCG["wals"], "two_stage": NDCG["two_stage"]}
    new = {"wals": NDCG["better wals"], "two_stage": NDCG["better two_stage"]}
    return {"old": evaluation(tmp_path / "old", old), "new": evaluation(tmp_path / "new", new)}


def expected(metric: str, system: str, against: str, values: np.ndarray, samples: int, seed: int) -> dict[str, Any]:
    mean, low, high = oracles.bootstrap_mean(values, samples, seed)
    named = {"metric": metric, "system": system, "against": against, "difference": mean, "low": low, "high": high}
    return {**named, "p": oracles.sign_flip_p(values), "users": 9}


def test_each_system_between_two_runs(runs: dict[str, Path]) -> None:
    found = compare(runs, samples=300, seed=4)
    assert {key: found[key] for key in ("data", "split", "users", "runs")} == {
        "data": "demo",
        "split": "test",
        "users": 9,
        "runs": ["old", "new"],
    }
    rows = [
        expected(metric, f"new/{s}", f"old/{s}", share * (NDCG[f"better {s}"] - NDCG[s]), 300, 4)
        for metric, share in (("ndcg@10", 1), ("recall@100", 0.5))
        for s in ("wals", "two_stage")
    ]
    for row, p in zip(rows, oracles.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    assert len(found["differences"]) == 4
    for ours, theirs in zip(found["differences"], rows, strict=True):
        assert ours == pytest.approx(theirs)


def test_one_run_compares_its_last_system_with_the_others(runs: dict[str, Path]) -> None:
    found = compare({"old": runs["old"] / "per_user.parquet"}, metrics=["ndcg@10"], samples=300)["differences"]
    assert [(d["system"], d["against"]) for d in found] == [
        ("old/two_stage", "old/popularity"),
        ("old/two_stage", "old/wals"),
    ]
    assert found[0]["difference"] == pytest.approx(found[1]["difference"] + 1)


def test_any_two_systems_and_what_nobody_has_is_absent(runs: dict[str, Path]) -> None:
    pairs = [("new/wals", "old/popularity"), ("new/two_stage", "old/two_stage")]
    found = compare(runs, pairs, ["ndcg@10", "user_auc"])["differences"]
    assert [(d["metric"], d["system"], d["users"]) for d in found] == [
        ("ndcg@10", "new/wals", 9),
        ("ndcg@10", "new/two_stage", 9),
        ("user_auc", "new/two_stage", 1),
    ]
    assert found[0]["difference"] == pytest.approx((NDCG["better wals"] - NDCG["wals"] + 1).mean())
    assert (found[2]["difference"], found[2]["low"], found[2]["high"], found[2]["p"]) == (0, 0, 0, 1)


def test_what_is_asked_twice_is_compared_and_corrected_once(runs: dict[str, Path]) -> None:
    pair = ("new/wals", "old/wals")
    once = compare(runs, [pair], ["ndcg@10"])["differences"]
    assert compare(runs, [pair, pair], ["ndcg@10", "ndcg@10"])["differences"] == once
    assert len(once) == 1


def test_a_run_does_not_differ_from_itself(runs: dict[str, Path]) -> None:
    for d in compare({"a": runs["old"], "b": runs["old"]})["differences"]:
        assert (d["difference"], d["low"], d["high"], d["p"], d["p_holm"]) == (0, 0, 0, 1, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "tfds:x"}, "`runs` must have the same data, or their users' figures are no pairs. Received: demo in"),
        ({"split": "validation"}, "`runs` must have the same split,"),
        ({"protocol": {"strategy": "global_time"}}, "the same strategy of the split,"),
        ({"protocol": {"positive_threshold": 4.0}}, "Received: None in old, 4.0 in other."),
        ({"protocol": {"targets_digest": "cd"}}, "`runs` must have the same targets,"),
        ({"users": [*USERS[:-1], "somebody"]}, "Received: 9 in old, 9 in other, 8 of them in both."),
        ({"users": USERS[:-1]}, "`runs` must be of the same users. Received: 9 in old, 8 in other, 8 of them in both."),
    ],
)
def test_runs_that_are_no_pairs_are_refused(
    tmp_path: Path, runs: dict[str, Path], changed: dict[str, Any], message: str
) -> None:
    values = {"wals": NDCG["wals"][: len(changed.get("users", USERS))]}
    other = evaluation(tmp_path / "other", values, **changed)
    with pytest.raises(ShortlistError, match=re.escape(message)):
        compare({"old": runs["old"], "other": other})


def test_an_evaluation_without_a_digest_is_compared_by_the_rest(tmp_path: Path, runs: dict[str, Path]) -> None:
    other = evaluation(tmp_path / "other", {"wals": NDCG["wals"]})
    found = json.loads((other / "metrics.json").read_text())
    del found["protocol"]["targets_digest"]
    (other / "metrics.json").write_text(json.dumps(found))
    assert len(compare({"old": runs["old"], "other": other})["differences"]) == 2


def test_what_is_not_there_is_refused_by_name(tmp_path: Path, runs: dict[str, Path]) -> None:
    with pytest.raises(ShortlistError, match=r"^`runs` must name at least one evaluated run\. Received: none\.$"):
        compare({})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShortlistError, match=r"^`runs` must be evaluated: x has no per_user.parquet\. Run `shortlist"):
        compare({"x": tmp_path / "empty"})
    with pytest.raises(
        ShortlistError, match=r"^`metrics` must be among the metrics of old\. .* Did you mean `ndcg@10`\?"
    ):
        compare(runs, metrics=["ndcg@1"])
    with pytest.raises(ShortlistError, match=r"^`metrics` must be among the metrics of old\. Received: user\. "):
        compare(runs, metrics=["user"])
    with pytest.raises(
        ShortlistError, match=r"^`pairs` must be among the systems\. Received: new/popularity\. Did you"
    ):
        compare(runs, [("new/popularity", "old/popularity")])
    alone = evaluation(tmp_path / "alone", {"wals": NDCG["wals"]})
    with pytest.raises(ShortlistError, match=r"two systems to compare\. Received: alone/wals\."):
        compare({"alone": alone})
