"""The answers of the small bundle, by loops."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracles
import serving_data
import tensorflow as tf

from shortlist.components._first_stage import describe_catalogue
from shortlist.components._queries import EncodedData
from shortlist.models._ranking_features import RankingFeatures

QUOTA, SIZE, LENGTH = {"two_tower": 5, "item_knn": 6}, 9, 6
YEAR = 365.2425 * 86_400
NAMES = list(QUOTA)


class Twin:
    """Answers requests by loops, from the splits and the parts; `fit_on` "all" is the refit bundle's.

    `sources` have `scores` and `item_vectors`, as the loaded indexes that are taken without them.
    """

    def __init__(
        self,
        served: dict[str, Any],
        fit_on: str = "train",
        quota: Mapping[str, int] = QUOTA,
        sources: Mapping[str, Any] | None = None,
    ):
        self.quota, self.names = quota.values(), list(quota)
        encoded = served[f"Transform.{fit_on}"]
        self.ids = ["", "", *(encoded / "items.txt").read_text("utf-8").splitlines()]
        self.row = {item: row for row, item in enumerate(self.ids) if item}
        users = (encoded / "users.txt").read_text("utf-8").splitlines()
        parts, _ = serving_data.splits()
        everything = sorted((r for part in parts.values() for r in part), key=lambda r: r["timestamp"])
        everything = [r for r in everything if r["item"] in self.row]
        self.now = max(r["timestamp"] for part in parts.values() for r in part)
        self.users = {user: row for row, user in enumerate(users, 2)}
        self.stored: dict[str, Any] = {user: [r for r in everything if r["user"] == user] for user in users}
        places = (encoded / "context_place.txt").read_text("utf-8").splitlines()
        self.places = {place: row for row, place in enumerate(places, 2)}
        self.popularity = np.zeros(len(self.ids))
        liked = [r for r in (everything if fit_on == "all" else parts["train"]) if r["rating"] >= 2]
        recent = max(r["timestamp"] for r in liked) - 3 * YEAR
        for r in liked:
            self.popularity[self.row[r["item"]]] += r["timestamp"] > recent
        load = lambda step: tf.saved_model.load(str(served[step] / "index"))  # noqa: E731
        self.sources = sources or {name: load(f"RetrievalIndex.{name}_{fit_on}") for name in self.names}
        factorized = {name: source for name, source in self.sources.items() if hasattr(source, "item_vectors")}
        self.vectors = {name: source.item_vectors().numpy() for name, source in factorized.items()}
        catalogue = describe_catalogue(EncodedData(encoded), 3.0)
        of = tuple(self.names), LENGTH, tuple(self.quota)
        self.features = RankingFeatures(catalogue, self.vectors, *of)  # its tests have the loop
        self.ranker = tf.saved_model.load(str(served["Ranker"] / "serving"))
        own = (served["Ranker"] / "items.txt").read_text("utf-8").splitlines()
        self.ranker_row = {row: own.index(item) + 2 if item in own else 1 for item, row in self.row.items()}
        self.ranker_row[0] = 0

    def query(self, r: dict[str, Any]) -> tuple[dict[str, Any], set[int]]:
        time = r.get("time", self.now)
        times, ratings = ([*r.get(f"history_{name}", []), *[-1] * 99] for name in ("time", "rating"))
        told = [
            (self.row[i], time if t == -1 else t, w)
            for i, t, w in zip(r.get("history", []), times, ratings, strict=False)
            if i in self.row
        ]
        stored = self.stored.get(r.get("user", ""), [])
        liked = [e for e in stored if e["rating"] >= 2]
        history = told or [(self.row[e["item"]], e["timestamp"], e["rating"]) for e in liked]
        exclude = {self.row[e["item"]] for e in stored} | {i for i, _, _ in told}
        exclude |= {self.row[i] for i in r.get("exclude", []) if i in self.row}
        if any(r.get("include_only", [])):
            exclude |= {row for item, row in self.row.items() if item not in r["include_only"]}
        user = self.users.get(r.get("user", ""), 1)
        return {
            "user": user,
            "history": [i for i, _, _ in history],
            "history_time": [t for _, t, _ in history],
            "history_weight": [w for _, _, w in history],
            "time": time,
            "context_place": self.places.get(r.get("context_place", ""), 0),
        }, exclude

    def first_stage(self, r: dict[str, Any]) -> SimpleNamespace:
        query, exclude = self.query(r)
        dtypes = dict.fromkeys(("user", "history", "context_place"), tf.int32)
        dtypes |= dict.fromkeys(("history_time", "time"), tf.int64)
        batch = {name: tf.constant([query[name]], dtype) for name, dtype in dtypes.items()}
        scores = [source.scores(batch).numpy()[0] for source in self.sources.values()]
        batch["history_weight"] = tf.constant([query["history_weight"]], tf.float32)
        asked = zip(self.names, self.quota, strict=True)
        quota = [most if (q := r.get(f"quota_{name}", -1)) == -1 else min(max(q, 0), most) for name, most in asked]
        items, fused, ranks = oracles.shortlist(scores, quota, SIZE, self.popularity, query["history"], exclude)
        if not query["history"]:
            scores = [self.popularity] * len(self.names)
        left = [i for i in range(2, len(self.ids)) if i not in exclude and i not in items]
        weight = {i: sum(1 / (60 + own[i]) for own in ranks if i in own) for i in left}
        left.sort(key=lambda i: (-round(weight[i], 9), -scores[0][i] if not weight[i] else 0, i))
        return SimpleNamespace(
            query=query, batch=batch, scores=scores, items=items, fused=fused, ranks=ranks, left=left
        )

    def odds(self, stage: SimpleNamespace, items: list[int]) -> np.ndarray:
        """Of any items, each beside the shortlist."""
        best = [*stage.items, *[0] * (SIZE - len(stage.items))]

        def table(rows: list[int]) -> tf.Tensor:
            return tf.constant([[own[rows] for own in stage.scores]], tf.float32)

        ranks = [[own.get(i, limit + 1) for i in items] for own, limit in zip(stage.ranks, self.quota, strict=True)]
        beside = tf.constant([best]), table(best)
        where = tf.constant([items]), table(items), tf.constant([ranks], tf.float32)
        features = self.features(stage.batch, *where, beside)
        rows = ([[self.ranker_row[i] for i in line]] for line in (items, stage.query["history"]))
        return self.ranker.score(features, *(tf.constant(r, tf.int32) for r in rows))["odds"].numpy()[0]

    def recommend(self, r: dict[str, Any], ranked: bool = True) -> dict[str, list[Any]]:
        stage = self.first_stage(r)
        best = list(zip(stage.items, stage.fused, strict=True))
        if ranked and best and stage.query["history"]:
            odds = self.odds(stage, stage.items)
            best = sorted(zip(stage.items, odds, strict=True), key=lambda pair: -pair[1])
        diversity, k = r.get("diversity", 0.0), max(r.get("k", 10), 0)
        if diversity > 0:
            scores, vectors = dict(best), self.vectors["two_tower"]
            order = oracles.mmr([i for i, _ in best], vectors, min(diversity, 1.0), max(k, 1))
            best = [(i, scores[i]) for i in order]
        answer = best + [(i, -1.0 - place) for place, i in enumerate(stage.left)]
        if not stage.query["history"]:
            answer = [(i, self.popularity[i]) for i, _ in answer]
        answer = answer[:k]

        def proposers(i: int) -> str:
            own = sorted((ranks[i], s) for s, ranks in enumerate(stage.ranks) if i in ranks)
            return "+".join(self.names[s] for _, s in own) or self.names[0]

        last = stage.query["history"][-LENGTH:]
        alike = next(iter(self.vectors.values()), self.features.genres.numpy())
        reasons = oracles.nearest_watched([i for i, _ in answer[:SIZE]], last, alike)
        return {
            "items": [self.ids[i] for i, _ in answer],
            "scores": [score for _, score in answer],
            "reasons": [self.ids[i] for i in reasons] + [""] * (len(answer) - len(reasons)),
            "sources": [proposers(i) if stage.query["history"] else "popularity" for i, _ in answer],
        }

    def rank(self, r: dict[str, Any], candidates: list[str]) -> list[float]:
        stage = self.first_stage(r)
        rows = [self.row.get(i, 0) for i in candidates]
        if not stage.query["history"]:
            return [self.popularity[i] if i else 0.0 for i in rows]
        known = [i for i in dict.fromkeys(rows) if i]
        found = {**dict(zip(known, self.odds(stage, known), strict=True)), 0: 0.0}
        return [found[i] for i in rows]
