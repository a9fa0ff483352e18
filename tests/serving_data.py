"""A small pipeline up to the bundle; half of the users like one half of the items."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tables
import tensorflow as tf

from shortlist.components._first_stage import ShortlistConfig
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Artifact, Candidates, Encoded, Model, Splits
from shortlist.components.candidate_generator import CandidateGenerator
from shortlist.components.context import SplitByContextConfig
from shortlist.components.exporter import Exporter
from shortlist.components.pipeline import Component, Pipeline
from shortlist.components.retrieval_index import RetrievalIndex
from shortlist.components.trainer import Trainer
from shortlist.components.transform import Transform, TransformConfig
from shortlist.models._base import query_spec
from shortlist.models.item_knn import ItemKNN
from shortlist.models.two_tower import TwoTower
from shortlist.models.weighted_logistic import WeightedLogistic
from shortlist.trainers import camf, wals

ITEMS = [f"{name}-{n}" for n in range(10) for name in ("Ärger", "映画")]
SHARES = {"train": 8, "rank_train": 3, "validation": 2, "test": 2}
START = 1_500_000_000


def splits() -> tuple[dict[str, list[tables.Row]], list[tables.Row]]:
    """The parts, and what is known of the items."""
    rng = np.random.default_rng(7)
    parts: dict[str, list[tables.Row]] = {name: [] for name in SHARES}
    for user in range(24):
        taste = np.array([4.0 if i % 2 == user % 2 else 1.0 for i in range(len(ITEMS))]) / (1 + np.arange(len(ITEMS)))
        watched = rng.choice(len(ITEMS), sum(SHARES.values()), replace=False, p=taste / taste.sum())
        at, time = 0, START + 1_000_000 * user
        for name, count in SHARES.items():
            for item in watched[at : at + count]:
                time += int(rng.integers(1, 200_000))
                rating = float(rng.integers(1, 6))
                place = ("home", "train", None)[(item + user) % 3]
                parts[name].append(tables.row(f"usér {user}", ITEMS[item], time, rating=rating, context_place=place))
            at += count
    parts["fold_in"] = [tables.row("held out", ITEMS[i], START + i, rating=3.0) for i in range(3)]
    parts["test"].append(tables.row("usér 0", "only in test", START + 900_000_000, rating=2.0))
    parts["test"].append(tables.row("only in test", ITEMS[0], START + 5, rating=2.0))
    items = [
        {"item": item, "title": f"„{item}“\nзаголовок", "year": 1990 + n, "genres": ["odd" if n % 2 else "even", "all"]}
        for n, item in enumerate(ITEMS)
    ]
    return parts, items


class Given(Component):
    output = Splits

    def run(self, out: Path) -> None:
        tables.write_splits(out, *splits(), positive_threshold=2.0)


class Retriever(Component):
    """A two-tower with random weights, or fitted ItemKNN, by the name of the step."""

    output = Model

    def run(self, out: Path, encoded: Encoded) -> None:
        data = EncodedData(encoded)
        tf.keras.utils.set_random_seed(1)
        if "two_tower" in self.name:
            model = TwoTower(data.num_items, embedding_dim=6, history_length=4, time_quantiles=(START, 2 * START))
            model.time_table.assign(np.random.default_rng(0).normal(0, 0.1, (3, 6)))
            model.candidate_table.assign(model.candidate_table * 20)
            model.history_table.assign(model.history_table * 20)
        else:
            model = ItemKNN(data.num_items)
            rows = data.rows(*Encoded.NAMES) if data.state["fitted_on"] == "all" else data.rows("train")
            keep = rows["positive"] & (rows["item"] >= 2) & (rows["user"] >= 2)
            cells = np.unique(np.stack([rows["user"][keep], rows["item"][keep]], axis=1).astype(np.int64), axis=0)
            model.fit(tf.SparseTensor(cells, np.ones(len(cells), np.float32), [data.num_users, data.num_items]))
        module = tf.Module()
        module.held = model.variables
        spec = query_spec(data.kinds)
        module.score_items = tf.function(lambda query: model.score_items(query), input_signature=[spec])
        if hasattr(model, "item_vectors"):
            module.embed_query = tf.function(lambda query: model.embed_query(query), input_signature=[spec])
            module.item_vectors = tf.function(lambda: model.item_vectors(), input_signature=[])
        tf.saved_model.save(module, str(out / "serving"))
        (out / "model.json").write_text(json.dumps({"notes": []}))


class Ranker(Component):
    """A weighted logistic regression with random weights and a table of items, adapted to the candidates."""

    output = Model

    def run(self, out: Path, encoded: Encoded, candidates: Candidates) -> None:
        table = np.load(candidates / "rank_train.npz")
        features = table["features"][table["items"] >= 2]
        tf.keras.utils.set_random_seed(2)
        rows = EncodedData(encoded).num_items
        model = WeightedLogistic(features.shape[1], (8,), embedding_dim=3, num_items=rows, history_length=4)
        model.adapt(features)
        model.table.assign(model.table * 30)  # as much as the features say
        module = tf.Module()
        module.held = model.variables
        pairs = tf.TensorSpec([None, None], tf.int32)
        spec = [tf.TensorSpec([None, None, features.shape[1]], tf.float32), pairs, pairs]
        module.score = tf.function(model.score, input_signature=spec)
        tf.saved_model.save(module, str(out / "serving"))
        shutil.copy(encoded / "items.txt", out / "items.txt")
        (out / "model.json").write_text(json.dumps({"notes": [], "expected_watch_time": None}))


def build(
    workdir: Path, refit: bool = False, quota: Mapping[str, int] = MappingProxyType({"two_tower": 5, "item_knn": 6})
) -> dict[str, Artifact]:
    """Runs the pipeline; `refit` exports sources that know every split, `quota` names the sources."""
    pipeline = Pipeline(workdir)
    given = pipeline.add(Given())

    def sources(fit_on: str) -> tuple[Any, dict[str, Any]]:
        encoded = pipeline.add(Transform(TransformConfig(fit_on=fit_on), fit_on), given)
        train = {"wals": Trainer(wals.Config(embedding_dim=4, epochs=3), "wals", "shortlist.trainers.wals:train")}
        split = SplitByContextConfig(side="user", alpha=0.5, min_ratings=2)
        own = camf.Config(embedding_dim=4, epochs=30, split=split)
        train["camf"] = Trainer(own, "camf", "shortlist.trainers.camf:train")
        models = {name: pipeline.add(train.get(name) or Retriever(None, f"{name}_{fit_on}"), encoded) for name in quota}
        indexes = {n: pipeline.add(RetrievalIndex(f"{n}_{fit_on}"), model, encoded) for n, model in models.items()}
        return encoded, indexes

    encoded, found = sources("train")
    config = ShortlistConfig(size=9, quota=dict(quota), history_length=6)
    candidates = pipeline.add(CandidateGenerator(config), encoded, found)
    ranker = pipeline.add(Ranker(), encoded, candidates)
    if refit:
        encoded, found = sources("all")
    pipeline.add(Exporter(), encoded, found, candidates, ranker)
    return pipeline.run()
