"""The two-tower against the model of TensorFlow Recommenders' retrieval tutorial: quality, training and evaluation.

The tutorial's model is an embedding of the user's id and one of the item's, of 32 dimensions each, with TFRS's in-batch
`Retrieval` task, Adagrad, and batches that are shuffled once and cached; its metrics are off while it trains
(`compute_metrics=False`). Ours is `TwoTower` at 32 dimensions too, with the last 10 watched items in the place of the
id, genres and year, logQ and masked accidental hits. Both are trained on the same split with as many examples an epoch,
the same batch and the same epochs. Each is tuned by as many trials, by Recall@100 on `validation`: learning rates are
drawn alike, and ours draws its dropout besides; the first trial is the tutorial's learning rate, and our shipped one.
The best of each is trained with every seed and measured on `test`, over the full catalogue without what was seen.

An epoch is timed in turn. Evaluation is timed on the tutorial model's vectors: `FactorizedTopK` over a `BruteForce`
index, which takes one query a positive, against `top_k` and the metrics here, nothing removed; both must find the same
number of positives.

Source: the TensorFlow Recommenders tutorial "Retrieval" (basic_retrieval).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from _retrieval import FURTHER, encoded, figures, mean_over, paired_row, settings
from _table import add_numbers, parsed, parser_of, tell

# TensorFlow comes after `_retrieval`, which chooses Keras 2.
import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip
import tensorflow_recommenders as tfrs  # isort: skip

from shortlist.components._queries import EncodedData, Queries, build_queries
from shortlist.components._top_k import top_k
from shortlist.components.metrics import find_targets
from shortlist.trainers import two_tower
from shortlist.trainers._common import next_item_batches

DIM, FIRST, K = 32, 2, 100
QUICK = {"trials": 1, "epochs": 3, "seeds": [0], "batch": 2048}


class Tutorial(tfrs.Model):
    """Its model, on rows of tables where the tutorial looks strings up, which costs it nothing here."""

    def __init__(self, data: EncodedData, learning_rate: float):
        super().__init__()
        self.users = tf.keras.layers.Embedding(data.num_users, DIM)
        self.items = tf.keras.layers.Embedding(data.num_items, DIM)
        self.task = tfrs.tasks.Retrieval()
        self.compile(tf.keras.optimizers.Adagrad(learning_rate))

    def compute_loss(self, features: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.task(self.users(features["user"]), self.items(features["item"]), compute_metrics=False)

    def score_items(self, query: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.linalg.matmul(self.users(query["user"]), self.items(tf.range(self.items.input_dim)), transpose_b=True)


class Trained:
    """A model with its batches, `steps` an epoch."""

    model: tf.keras.Model
    batches: Iterator[Any]
    steps: int

    def train(self, epochs: int) -> None:
        step = self.model.make_train_function()
        for _ in range(epochs * self.steps):
            step(self.batches)


class Theirs(Trained):
    """The tutorial's model with its batches."""

    def __init__(self, data: EncodedData, a: argparse.Namespace, seed: int, learning_rate: float = 0.1):
        tf.keras.utils.set_random_seed(seed)
        rows = data.rows("train")
        keep = rows["positive"] & (rows["item"] >= FIRST)
        examples = tf.data.Dataset.from_tensor_slices({name: rows[name][keep] for name in ("user", "item")})
        self.batches = iter(examples.shuffle(100_000, seed=seed).batch(a.batch).cache().repeat())
        self.steps = -(-int(keep.sum()) // a.batch)
        self.model = Tutorial(data, learning_rate)


class Ours(Trained):
    """The two-tower with its batches: as many examples an epoch as there are positives, the same number a user."""

    def __init__(self, data: EncodedData, a: argparse.Namespace, seed: int, **changes: Any):
        tf.keras.utils.set_random_seed(seed)
        rows = data.rows("train")
        own = {"embedding_dim": DIM, "long_history_length": 0, "batch_size": a.batch, "seed": seed, **changes}
        one_each = len(two_tower.make_examples(settings(**own, examples_per_user=1), data, rows))
        wanted = round(rows["positive"].sum() / one_each)
        config = settings(**own, examples_per_user=wanted, epochs=a.epochs + 1 + a.rounds)
        examples = two_tower.make_examples(config, data, rows)
        self.model = two_tower.make_model(config, data, examples)
        batches, self.steps = next_item_batches(examples, config, 0)
        self.batches = iter(batches)


def tuned(make: Callable[..., Any], draw: Callable[[Any], dict[str, Any]], a: Any, queries: Queries) -> dict[str, Any]:
    """The best of the trials by Recall@100; the first one is `make`'s own setting."""
    rng, best, chosen = np.random.default_rng(0), -1.0, {}
    for trial in range(a.trials):
        changes = draw(rng) if trial else {}
        made = make(seed=0, **changes)
        made.train(a.epochs)
        found = float(np.nanmean(figures(made.model.score_items, queries)["recall@100"]))
        print(f"{type(made).__name__}, trial {trial}: {found:.4f} {changes}", file=sys.stderr)
        if found > best:
            best, chosen = found, changes
    return chosen


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def speed_row(case: str, ours: list[float], peer: list[float], bar: float, same: bool = True) -> dict[str, Any]:
    ratio = statistics.median(x / y for x, y in zip(ours, peer, strict=True))
    row = {"case": case, "ours": round(statistics.median(ours), 4), "peer": round(statistics.median(peer), 4)}
    row |= {"ratio": round(ratio, 4), "bar": bar, "ok": ratio <= bar and same}
    return {**row, **dict.fromkeys(FURTHER)}


def evaluation_row(model: Tutorial, queries: Queries, rounds: int) -> dict[str, Any]:
    users, items = model.users(queries.user).numpy(), model.items.embeddings.numpy()
    owner = np.repeat(np.arange(len(queries)), np.diff(queries.targets.offsets))
    known = queries.targets.values >= FIRST
    owner, targets = owner[known], queries.targets.values[known]
    offsets = np.searchsorted(owner, np.arange(len(queries) + 1))
    nothing = np.zeros(len(queries) + 1, np.int64), np.zeros(0, np.int32)
    index = tfrs.layers.factorized_top_k.BruteForce(k=K).index(items[FIRST:], tf.range(FIRST, len(items)))
    metric = tfrs.metrics.FactorizedTopK(candidates=index, ks=[K])
    pairs = {"user": users[owner], "item": items[targets], "id": targets}
    batches = tf.data.Dataset.from_tensor_slices(pairs).batch(4096).cache()

    @tf.function
    def update(batch: dict[str, tf.Tensor]) -> None:
        metric.update_state(batch["user"], batch["item"], true_candidate_ids=batch["id"])

    def theirs() -> int:
        metric.reset_states()
        for batch in batches:
            update(batch)
        return round(float(metric.result()[0]) * len(targets))

    def ours() -> int:
        ranked = top_k(users, items, K, *nothing)
        recall = find_targets(ranked, offsets, targets).metrics((10, K))[f"recall@{K}"]
        return round(float(np.nansum(recall * np.minimum(np.diff(offsets), K))))

    hits = ours(), theirs()
    seconds = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    case = f"evaluation, seconds; {len(targets):,} positives, hits {hits[0]:,} and {hits[1]:,}"
    return speed_row(case, *map(list, zip(*seconds, strict=True)), 0.1, hits[0] == hits[1])


def compare(source: str, a: argparse.Namespace) -> list[dict[str, Any]]:
    data = encoded(source, a.archive_dir, a.workdir)
    validation, test = build_queries(data, "validation"), build_queries(data, "test")
    name = source.removeprefix("tfds:").partition(":")[0]

    def theirs(seed: int, **changes: Any) -> Theirs:
        return Theirs(data, a, seed, **changes)

    def ours(seed: int, **changes: Any) -> Ours:
        return Ours(data, a, seed, **changes)

    def rate(rng: Any) -> dict[str, Any]:
        return {"learning_rate": float(np.exp(rng.uniform(np.log(0.01), np.log(1.0))))}

    best = (
        tuned(ours, lambda rng: {**rate(rng), "dropout": float(rng.uniform(0, 0.8))}, a, validation),
        tuned(theirs, rate, a, validation),
    )
    found: tuple[list[Any], list[Any]] = ([], [])
    for seed in a.seeds:
        made = [make(seed, **changes) for make, changes in zip((ours, theirs), best, strict=True)]
        for one, kept in zip(made, found, strict=True):
            one.train(a.epochs)
            kept.append(figures(one.model.score_items, test))
    rows = [paired_row(f"{name}: Recall@100 on test", *map(mean_over, found), "above")]
    for one in made:
        one.train(1)
    seconds = [(timed(lambda: made[0].train(1)), timed(lambda: made[1].train(1))) for _ in range(a.rounds)]
    rows.append(speed_row(f"{name}: seconds an epoch", *map(list, zip(*seconds, strict=True)), 0.8))
    rows.append(evaluation_row(made[1].model, test, a.rounds))
    return rows


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, QUICK, ["demo"], "runs/tfrs_retrieval")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="(0 1 2 3 4)")
    add_numbers(
        parser,
        ("trials", 10, "of each model's tuning"),
        ("epochs", 20, "of each training"),
        ("batch", 8192, "examples, as in the tutorial"),
        ("rounds", 5, "how often each is timed"),
    )
    return parsed(parser, argv, QUICK)


def main(argv: list[str]) -> int:
    a = parse(argv)
    return tell(
        a,
        compare,
        "ours: the two-tower, peer: the tutorial's model. difference: paired, with its 95 % interval over users.\n"
        f"Batches of {a.batch:,}, {a.epochs} epochs, {a.trials} trials each; mean of the seeds {a.seeds}.",
        FURTHER,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
