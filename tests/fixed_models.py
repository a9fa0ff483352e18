"""Retrievers and rankers whose scores are given, for the components that come after training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tables
import tensorflow as tf

from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Candidates, Encoded, Index, Model, Splits
from shortlist.components.pipeline import Component, Node, Pipeline
from shortlist.components.splitter import GUARANTEES
from shortlist.components.transform import Transform
from shortlist.models._base import QUERY_SPEC


class Given(Component):
    """`Splits` of these rows."""

    output = Splits

    def __init__(self, parts: dict[str, list[tables.Row]], name: str = "", strategy: str = "per_user_time"):
        super().__init__(None, name)
        self.parts, self.strategy = parts, strategy

    def external(self) -> Any:
        return [self.parts, self.strategy]

    def run(self, out: Path) -> None:
        items = sorted({r["item"] for part in self.parts.values() for r in part})
        content = [{"item": item, "title": f"T {item}", "year": 1990, "genres": ["g"]} for item in items]
        splits = tables.write_splits(out, self.parts, content)
        info = splits.read_json("splits.json")
        info |= {"strategy": self.strategy, "guarantee": GUARANTEES[self.strategy]}
        (out / "splits.json").write_text(json.dumps(info))
        (out / "source.json").write_text(json.dumps({"source": "given", "name": "Given", "rows": 1, "licence": "free"}))


class FixedIndex(Component):
    """Scores that depend on nothing but the user: random ones, or NaN for everybody."""

    output = Index

    def __init__(self, name: str, seed: int, nan: bool = False):
        super().__init__(None, name)
        self.seed, self.nan = seed, nan

    def external(self) -> Any:
        return [self.seed, self.nan]

    def run(self, out: Path, encoded: Encoded) -> None:
        data = EncodedData(encoded)
        module = tf.Module()
        module.table = tf.Variable(random_scores(self.seed, data.num_users, data.num_items, self.nan))
        module.scores = tf.function(lambda query: tf.gather(module.table, query["user"]), input_signature=[QUERY_SPEC])
        tf.saved_model.save(module, str(out / "index"))
        (out / "model.json").write_text(json.dumps({"notes": [f"{self.name} is fixed."]}))


def random_scores(seed: int, users: int, items: int, nan: bool = False) -> np.ndarray:
    """Few different values, so that many are tied, float32 `[U, I]`."""
    scores = np.random.default_rng(seed).integers(0, 6, (users, items)).astype(np.float32)
    return scores + np.float32(np.nan if nan else 0)


class FixedRanker(Component):
    """The order is that of a fixed feature, or its negative, the log-odds of a watch; one takes two units of time."""

    output = Model

    def __init__(
        self, name: str = "", feature: str = "log_fused_rank", scale: float = -1.0, facts: dict[str, Any] | None = None
    ):
        super().__init__(None, name)
        self.feature, self.scale, self.facts = feature, scale, facts or {}

    def external(self) -> Any:
        return [self.feature, str(self.scale), self.facts]

    def run(self, out: Path, candidates: Candidates) -> None:
        names = candidates.read_json("candidates.json")["feature_names"]
        column, scale = names.index(self.feature), self.scale

        def score(features: tf.Tensor, items: tf.Tensor, history: tf.Tensor) -> dict[str, tf.Tensor]:
            order = features[..., column] * scale  # without exp, whose last bit depends on the place in a vector
            return {"odds": order, "watch": tf.sigmoid(order), "expected": 2 * tf.sigmoid(order)}

        module = tf.Module()
        rows = tf.TensorSpec([None, None], tf.int32)
        spec = [tf.TensorSpec([None, None, len(names)], tf.float32), rows, rows]
        module.score = tf.function(score, input_signature=spec)
        tf.saved_model.save(module, str(out / "serving"))
        (out / "model.json").write_text(json.dumps({"notes": ["A fixed order."], **self.facts}))


def encoded(p: Pipeline, parts: dict[str, list[tables.Row]], name: str = "", strategy: str = "per_user_time") -> Node:
    """Adds the splits and what Transform makes of them."""
    return p.add(Transform(None, name), p.add(Given(parts, name, strategy)))


def random_parts(seed: int, users: int = 12, items: int = 24, shares: tuple[int, ...] = (5, 3, 2, 2)) -> Any:
    """Rows in time order, `shares` a user and split (train, rank_train, validation, test); no item twice a user."""
    rng = np.random.default_rng(seed)
    names = ("train", "rank_train", "validation", "test")
    parts: dict[str, list[tables.Row]] = {name: [] for name in names}
    for user in range(users):
        watched = iter(rng.permutation(items))
        time = 1_500_000_000 + user
        for name, count in zip(names, shares, strict=True):
            for _ in range(count):
                time += int(rng.integers(1, 200_000))
                parts[name].append(tables.row(f"user {user:02}", f"item {next(watched):02}", time))
    return parts


def with_impressions(parts: dict[str, list[tables.Row]]) -> dict[str, list[tables.Row]]:
    """Every other row was only shown, the other ones were watched; rows of a user stand together on pages."""
    found = {}
    for name, rows in parts.items():
        found[name] = [
            {**r, "event": "impression"} if n % 2 else {**r, "watch_time": 20.0 + 7 * (n % 5)}
            for n, r in enumerate(rows)
        ]
        found[name] = [{**r, "timestamp": r["timestamp"] // 150_000 * 150_000} for r in found[name]]
    return found
