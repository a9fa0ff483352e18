"""A bundle from a log with impressions, watch times, a length and a language that users have too.

It is served before `rank_train`: what is stored of a user is `train`, and a request says what happened since.
"""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import serving_data
import tables
import tensorflow as tf

from shortlist.components._first_stage import ShortlistConfig
from shortlist.components._records import encode_example
from shortlist.components.artifacts import Artifact, Candidates, Encoded, Model, Splits
from shortlist.components.candidate_generator import CandidateGenerator
from shortlist.components.exporter import Exporter
from shortlist.components.pipeline import Component, Pipeline
from shortlist.components.retrieval_index import RetrievalIndex
from shortlist.components.trainer import Trainer
from shortlist.components.transform import Transform
from shortlist.trainers import weighted_logistic

USERS, ITEMS = 440, 24
SHARES = {"train": 8, "rank_train": 4, "validation": 3, "test": 3}
START, SIZE, LENGTH, UNIT = 1_500_000_000, 9, 6, 60.0
QUOTA = {"two_tower": 5, "item_knn": 6}
LANGUAGES = ("de", "en", "fr", None)


def parts() -> dict[str, list[tables.Row]]:
    """Everybody's first row is a watch; no two parts of a user share a second, though two rows of one may."""
    rng = np.random.default_rng(11)
    found: dict[str, list[tables.Row]] = {name: [] for name in SHARES}
    for user in range(USERS):
        time = START + 50_000 * user
        for name, count in SHARES.items():
            time += int(rng.integers(1, 90_000))
            for n in range(count):
                time += int(rng.choice([0, 5, 700, 200_000])) if n else 0
                row = tables.row(f"u{user:03}", f"i{int(ITEMS * rng.random() ** 1.5):02}", time, event="impression")
                if (name == "train" and not n) or rng.random() < 0.45:
                    watched = float(np.round(rng.gamma(2, 900), 1)) + 1
                    row |= {"event": "watch", "watch_time": watched if rng.random() < 0.9 else None}
                found[name].append(row)
    return found


class Log(Component):
    """The parts, or only `train`."""

    output = Splits

    def external(self) -> Any:
        return self.name

    def run(self, out: Path) -> None:
        items = [
            {
                **{"item": f"i{n:02}", "title": f"T{n}", "year": 1990 + n % 7, "genres": [f"g{n % 3}", f"g{n % 4}"]},
                **{"language": LANGUAGES[n % 4], "length": None if n % 6 == 5 else 600.0 + 150 * n},
            }
            for n in range(ITEMS)
        ]
        given = {"train": parts()["train"]} if "before" in self.name else parts()
        languages = {f"u{n:03}": ("de", "en", "tlh", None, "fr")[n % 5] for n in range(USERS)}
        kinds = {"language": pa.string(), "length": pa.float32()}
        tables.write_splits(out, given, items, None, kinds, {"language": languages})


class Probe(Component):
    """The trained ranker; with a `column` of 0 or more the odds are that feature, and `expected` is the next one."""

    output = Model

    def run(self, out: Path, candidates: Candidates, trained: Model) -> None:
        names = candidates.read_json("candidates.json")["feature_names"]
        module = tf.Module()
        module.inner = tf.saved_model.load(str(trained / "serving"))
        module.column = tf.Variable(-1, trainable=False)

        def score(features: tf.Tensor, items: tf.Tensor, history: tf.Tensor) -> dict[str, tf.Tensor]:
            place = tf.maximum(module.column, 0)
            odds, expected = (tf.gather(features, (place + n) % len(names), axis=-1) for n in (0, 1))
            looked = {"odds": odds, "watch": odds, "expected": expected}
            return tf.cond(
                module.column < 0, lambda: dict(module.inner.score(features, items, history)), lambda: looked
            )

        rows = tf.TensorSpec([None, None], tf.int32)
        spec = [tf.TensorSpec([None, None, len(names)], tf.float32), rows, rows]
        module.score = tf.function(score, input_signature=spec)
        tf.saved_model.save(module, str(out / "serving"))
        for name in ("items.txt", "model.json"):
            shutil.copy(trained / name, out / name)


def build(workdir: Path) -> dict[str, Artifact]:
    """Runs the pipeline. `before` in a step's name: of `train` alone, from which everything else is fitted anyway."""
    pipeline = Pipeline(workdir)

    def sources(name: str) -> tuple[Any, dict[str, Any]]:
        encoded = pipeline.add(Transform(None, name), pipeline.add(Log(None, name)))
        models = {n: pipeline.add(serving_data.Retriever(None, f"{n}_{name}"), encoded) for n in QUOTA}
        return encoded, {n: pipeline.add(RetrievalIndex(f"{n}_{name}"), m, encoded) for n, m in models.items()}

    encoded, found = sources("log")
    config = ShortlistConfig(size=SIZE, quota=QUOTA, history_length=LENGTH)
    candidates = pipeline.add(CandidateGenerator(config), encoded, found)
    settings = weighted_logistic.Config(
        hidden_units=(16,), dropout=0.0, l2=0.0, embedding_dim=3, history_length=4, table_learning_rate=0.1, epochs=1
    )
    trained = pipeline.add(
        Trainer(settings, "ranker", "shortlist.trainers.weighted_logistic:train"), encoded, candidates
    )
    probe = pipeline.add(Probe(), candidates, trained)
    encoded, found = sources("before")
    pipeline.add(Exporter(), encoded, found, candidates, probe)
    return pipeline.run()


class Served:
    """The loaded bundle, asked with serialized examples."""

    def __init__(self, run: dict[str, Artifact]):
        self.bundle = tf.saved_model.load(str(run["Exporter"] / "saved_model"))
        self.names = run["CandidateGenerator"].read_json("candidates.json")["feature_names"]

    def __call__(self, requests: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        examples = tf.constant([base64.b64decode(encode_example(r)) for r in requests], tf.string)
        return {name: v.numpy() for name, v in self.bundle.signatures["serving_default"](examples=examples).items()}

    def features(self, requests: list[dict[str, Any]]) -> list[dict[str, dict[str, float]]]:
        """Of each request, by item of its shortlist, the features by name, as the served ranker is given them."""
        requests = [{**r, "k": SIZE} for r in requests]
        answer = self(requests)
        found: list[dict[str, dict[str, float]]] = [
            {
                item.decode(): {} for item, odds in zip(*row, strict=True) if odds > 0
            }  # what is past the shortlist has -1
            for row in zip(answer["items"], answer["scores"], strict=True)
        ]
        for looked in self.looking():
            answer = self(requests)
            pair = answer["scores"], answer["expected_watch_time"] / np.float32(UNIT)
            for own, items, *values in zip(found, answer["items"].astype(str), *pair, strict=True):
                for item, *two in zip(items, *values, strict=True):
                    if item in own:
                        own[item] |= dict(zip(looked, map(float, two), strict=False))
        return found

    def looking(self) -> Iterator[list[str]]:
        """Makes the served ranker show its features instead, two at a time: their names."""
        try:
            for column in range(0, len(self.names), 2):
                self.bundle.ranker.column.assign(column)
                yield self.names[column : column + 2]
        finally:
            self.bundle.ranker.column.assign(-1)


def ids(encoded: Encoded) -> list[str]:
    """The ids of the item rows."""
    return ["", "", *(encoded / "items.txt").read_text().splitlines()]


def facts(run: dict[str, Artifact]) -> dict[str, Any]:
    return json.loads((run["Trainer.ranker"] / "model.json").read_text())
