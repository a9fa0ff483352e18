"""A process of its own that trains small models under a strategy, and prints what came of it as JSON.

`python replica_losses.py FOLDER CASE…` with TF_CONFIG is one of several processes; without, it trains each case alone
and on two logical devices of the CPU.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from shortlist.components import _training
from shortlist.components._cluster import ClusterConfig, read_cluster
from shortlist.models import CAMF, ContentBased, Hybrid, Popularity, TwoTower, WeightedLogistic
from shortlist.models._nested import described
from shortlist.models._optimizer import AdamWithTables, TableAdagrad
from shortlist.trainers._common import Share
from shortlist.trainers._strategy import fit

STEPS, BATCH, ITEMS, USERS = 50, 33, 60, 40  # 33: the two replicas' parts differ
Case = tuple[Any, Callable[[np.random.Generator], Any]]


def next_item(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The label is the successor of the last item watched, most of the time."""
    history = rng.integers(2, ITEMS, (BATCH, 4)).astype(np.int32)
    follows = 2 + (history[:, -1] - 1) % (ITEMS - 2)
    label = np.where(rng.random(BATCH) < 0.9, follows, rng.integers(2, ITEMS, BATCH)).astype(np.int32)
    zeros = np.zeros(BATCH, np.int64)
    user = rng.integers(2, USERS, BATCH).astype(np.int32)
    return {"user": user, "history": history, "history_time": history * zeros[:, None], "time": zeros, "label": label}


def two_tower(rate: float = 0.2, **arguments: Any) -> Case:
    model = TwoTower(ITEMS, USERS, 8, history_length=1, num_genres=3, num_years=4, **arguments)
    rng = np.random.default_rng(1)
    model.set_content(rng.integers(0, 2, (ITEMS, 3)), rng.integers(0, 4, ITEMS))
    model.set_label_counts(rng.integers(1, 9, ITEMS))
    model.compile(TableAdagrad(rate))
    return model, next_item


def camf() -> Case:
    model = CAMF(USERS, ITEMS, {"place": 3}, deviation="CUCI", embedding_dim=4)

    def batch(rng: np.random.Generator) -> Any:
        x = {n: rng.integers(0, size, BATCH).astype(np.int32) for n, size in (("user", USERS), ("item", ITEMS))}
        x["context_place"] = rng.integers(0, 4, BATCH).astype(np.int32)
        return x, (1 + x["item"] % 5 + rng.random(BATCH)).astype(np.float32)

    model.adapt(*batch(np.random.default_rng(5)))
    model.compile(TableAdagrad(0.4))
    return model, batch


def ranker() -> Case:
    model = WeightedLogistic(3, (8,), l2=0.01, cross_layers=1, embedding_dim=4, num_items=ITEMS, history_length=4)

    def batch(rng: np.random.Generator) -> Any:
        x = {"features": rng.normal(size=(BATCH, 3)).astype(np.float32)}
        x |= {n: rng.integers(0, ITEMS, s).astype(np.int32) for n, s in (("item", BATCH), ("history", (BATCH, 4)))}
        label = (x["features"][:, 0] + rng.normal(size=BATCH) > 0).astype(np.float32)
        return x, label, np.where(label > 0, rng.exponential(3, BATCH), 1).astype(np.float32)

    model.adapt(batch(np.random.default_rng(5))[0]["features"])
    model.compile(AdamWithTables(0.01, 0.05))
    return model, batch


def content_based() -> Case:
    model = ContentBased(ITEMS, 5, hash_buckets=20, embedding_dim=4, hidden_units=(8,), item_dropout=0.0)
    content = np.random.default_rng(1).random((ITEMS, 5))
    content[:2] = 0
    model.set_content(content, np.array(["", "", *map(str, range(2, ITEMS))]))
    model.set_trained(np.arange(2, ITEMS))
    model.compile(AdamWithTables(0.01, 0.05))
    return model, next_item


def hybrid() -> Case:
    bases = [Popularity(ITEMS), two_tower()[0]]
    bases[0].fit(np.random.default_rng(2).integers(2, ITEMS, 200))
    model = Hybrid(ITEMS, [described(base) for base in bases], embedding_dim=4)
    model.set_bases(bases)
    model.set_item_counts(np.arange(ITEMS))
    model.compile(tf.keras.optimizers.Adam(0.01))

    def batch(rng: np.random.Generator) -> dict[str, np.ndarray]:
        found = next_item(rng)
        label = found.pop("label")
        return {**found, "targets": label[:, None], "exclude": np.zeros((BATCH, 1), np.int32)}

    return model, batch


CASES: dict[str, Callable[[], Case]] = {
    "in_batch": two_tower,
    "streaming": lambda: two_tower(log_q="streaming"),
    "full": lambda: two_tower(0.1, softmax="full", hidden_units=(16,), shared_item_table=True),
    "camf": camf,
    "ranker": ranker,
    "content_based": content_based,
    "hybrid": hybrid,
}


def trained(case: str, strategy: str, epochs: int = STEPS // 5, steps: int = 5) -> tuple[Any, list[float]]:
    """The model, and its loss in each epoch: that of its last step, or for some models the mean of its steps."""
    tf.keras.utils.set_random_seed(0)
    model, batch = CASES[case]()

    def batches(first: int, share: Share) -> tuple[tf.data.Dataset, int]:
        def generate() -> Any:
            rng = np.random.default_rng(3)
            for number in range(epochs * steps):
                whole = batch(rng)
                for part in share.slices(0, BATCH) if number >= first * steps else ():
                    yield tf.nest.map_structure(lambda values, part=part: values[part], whole)

        one = batch(np.random.default_rng(0))
        spec = tf.nest.map_structure(lambda v: tf.TensorSpec([None, *v.shape[1:]], v.dtype), one)
        return tf.data.Dataset.from_generator(generate, output_signature=spec), steps

    history = fit(model, SimpleNamespace(strategy=strategy, epochs=epochs), batches, 0, [])
    return model, [float(value) for value in history["loss"]]


def hits(model: Any, case: str) -> list[float]:
    """Of 600 new examples, whether what was watched next is the first one recommended; the ranker's, whether the
    likelier of a watch and none was right; of ratings, the squared errors, negative."""
    found: list[float] = []
    batch = CASES[case]()[1]
    for seed in range(600 // BATCH + 1):
        rng = np.random.default_rng(100 + seed)
        if case == "camf":
            x, y = batch(rng)
            found += (-np.square(model.predict_rating(x) - y)).tolist()
        elif case == "ranker":
            x, label, _ = batch(rng)
            found += ((model(x)["watch_logit"].numpy() > 0) == (label > 0)).astype(float).tolist()
        else:
            query = batch(rng)
            best = tf.argmax(model.score_items(query)[:, 2:], axis=1).numpy() + 2
            found += (best == query["label"]).astype(float).tolist()
    return found[:600]


def main(folder: Path, cases: list[str]) -> None:
    cluster = next(filter(None, (read_cluster(name, CONFIG) for name in STRATEGIES)), None)
    if cluster is None:
        _training.divide_cpu(2)
        losses = {name: [trained(name, strategy)[1] for strategy in ("none", "mirrored")] for name in cases}
        print(json.dumps(losses))
        return
    strategy = _training._joined(cluster, folder)  # a worker or server of a parameter_server ends here, with the test
    found = {}
    for name in cases:
        _training._together = _training.Together(strategy, cluster, folder / name, folder)
        if cluster.strategy == "multi_worker":
            found[name] = trained(name, "multi_worker")[1]
        else:
            epochs = 24 if name == "full" else 12  # all that can be known, in whichever order two workers' steps come
            found[name] = [hits(trained(name, way, epochs, 25)[0], name) for way in ("none", "parameter_server")]
    print(json.dumps(found))


CONFIG = ClusterConfig(min_shard_bytes=64)
STRATEGIES = [os.environ["STRATEGY"]] if "STRATEGY" in os.environ else []

if __name__ == "__main__":
    code = 1
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to end in order would wait for the others
