"""How many users a second bulk inference answers, beside a call of the signature for one user at a time.

The bundle is that of the shipped pipeline, unless --set makes it another. Ours is what `shortlist predict` does with
every user of the data once the model is loaded, the Parquet file included. The peer calls `recommend` of the same saved
model. Both run in this process, in turn, as `predict` and `shortlist serve` run: one thread an operation, and as many
operations at once as there are threads.

The other rows are what a batch cannot do without, timed apart in batches as large as those of `predict`, and as many at
once: the scores of each source, the ranker with the normalization of its features, and of that the matrix products
alone, of matrices of the same shapes. Their peer is all of bulk inference. `ceiling` is a call of the signature in
terms of the part: what the ratio of the first row could be at most if a batch were nothing else.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from _table import add_numbers, parsed, parser_of, tell

QUICK = {"users": 128, "calls": 50, "pairs": 2}
BAR = 20.0
K = 10


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def side_by_side(call: Callable[[], Any], threads: int) -> float:
    """Seconds a call, of some that go on at the same time."""
    with ThreadPoolExecutor(threads) as pool:
        return seconds(lambda: list(pool.map(lambda _: call(), range(4 * threads)))) / (4 * threads)


def of_source(source: str, a: argparse.Namespace) -> list[dict[str, Any]]:
    import tensorflow as tf

    import shortlist.models.weighted_logistic  # noqa: F401  (so that Keras's loader knows it)
    from shortlist.components._first_stage import load_index
    from shortlist.components._queries import EncodedData, build_queries
    from shortlist.components.bulk_inferrer import MOST, Answer, BulkConfig, read_users
    from shortlist.trainers.two_stage import load_config, parse_overrides, two_stage

    given = {"data.source": source, "workdir": a.workdir / source.replace("/", "_").replace(":", "_")}
    given |= {"data.archive_dir": a.archive_dir} if source.startswith("tfds:") else {}
    config = load_config(overrides={**given, "baselines": {}, **parse_overrides(a.set)})
    made = two_stage(config).run(until=["Exporter"])
    model = made["Exporter"].uri / "saved_model"
    users = read_users("all", model)[: a.users]
    recommend = tf.saved_model.load(str(model)).signatures["recommend"]
    specs = recommend.structured_input_signature[1]

    def one(user: str) -> None:
        asked = {
            n: tf.fill([1] * s.shape.rank, tf.constant("" if s.dtype == tf.string else -1, s.dtype))
            for n, s in specs.items()
        }
        asked |= {"user": tf.constant([user]), "k": tf.constant([K], specs["k"].dtype)}
        {name: value.numpy() for name, value in recommend(**asked).items()}

    bulk = Answer(model, BulkConfig(k=K))

    def all_users() -> None:
        with tempfile.TemporaryDirectory() as folder:
            bulk((Path(folder) / "part.parquet", users))

    one(users[0])
    all_users()
    some = [str(user) for user in np.random.default_rng(0).permutation(users)[: a.calls]]
    ours, peer = [], []
    for _ in range(a.pairs):
        ours.append(len(users) / seconds(all_users))
        peer.append(len(some) / seconds(lambda: [one(user) for user in some]))
    ours, peer = float(np.median(ours)), float(np.median(peer))
    case = f"{source}: users a second"
    rows = [
        {
            "case": case,
            "ours": round(ours, 1),
            "peer": round(peer, 1),
            "ratio": round(ours / peer, 2),
            "bar": BAR,
            "ok": ours >= BAR * peer,
            "ceiling": None,
        }
    ]

    data = EncodedData(made["Transform"])
    _, batch = next(build_queries(data, "test").batches(MOST))
    exclude = batch.pop("exclude")
    query = {name: tf.constant(value) for name, value in batch.items()}
    parts: dict[str, Callable[[], Any]] = {}
    for name in config.sources:
        index = load_index(made[f"RetrievalIndex.{name}"])
        parts[f"scores of {name}"] = lambda index=index: index.scores(query).numpy()
    ranker = tf.saved_model.load(str(made["Trainer.weighted_logistic"] / "serving"))
    candidates = np.load(made["CandidateGenerator"] / "test.npz")
    features, items, history = (
        tf.constant(candidates[name][: len(exclude)]) for name in ("features", "items", "history")
    )
    parts["ranker"] = lambda: ranker.score(features, items, history)["odds"].numpy()
    model_file = str(made["Trainer.weighted_logistic"] / "model.keras")
    weights = tf.keras.models.load_model(model_file, compile=False).weights
    parts["the ranker's matrix products"] = products(weights, features.shape[0] * features.shape[1])
    for name, call in parts.items():
        call()
        ms = 1000 * float(np.median([side_by_side(call, a.threads) for _ in range(5)])) / len(exclude)
        rows.append(
            {
                "case": f"{source}: {name}, ms a user",
                "ours": round(ms, 3),
                "peer": round(1000 / ours, 3),
                "ratio": round(ms * ours / 1000, 3),
                "bar": None,
                "ok": True,
                "ceiling": round(1000 / peer / ms, 1),
            }
        )
    return rows


def products(weights: list[Any], rows: int) -> Callable[[], Any]:
    """The dense layers of a ranker and nothing else, for so many candidates: each kernel times random numbers."""
    import tensorflow as tf

    kernels = [weight.value() for weight in weights if "kernel" in weight.name and weight.shape.rank == 2]
    inputs = {width: tf.random.normal([rows, width]) for width in {kernel.shape[0] for kernel in kernels}}
    multiply = tf.function(lambda: [tf.linalg.matmul(inputs[kernel.shape[0]], kernel) for kernel in kernels])
    return lambda: [product[-1, -1].numpy() for product in multiply()]


def main(argv: list[str]) -> int:
    parser = parser_of(__doc__, QUICK, ["demo"], "runs/bulk_inference")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the pipeline")
    add_numbers(
        parser,
        ("users", 1_000_000, "of the data at most"),
        ("calls", 200, "of the signature, in each pair"),
        ("pairs", 5, "of both, in turn"),
        ("threads", 2, "of TensorFlow"),
    )
    a = parsed(parser, argv, QUICK)
    for name in ("users", "calls", "pairs", "threads"):
        if getattr(a, name) < 1:
            parser.error(f"--{name} must be at least 1. Received: {getattr(a, name)}.")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(a.threads)
    text = f"{a.threads} threads. bar: the least that the ratio may be."
    return tell(a, of_source, text, ["ceiling"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
