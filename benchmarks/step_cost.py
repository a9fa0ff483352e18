"""What a training step costs when the tables grow: 1,000,000 rows against 10,000, the batch unchanged.

A model whose gradients are sparse touches the rows of its batch, so the size of the tables must hardly matter
(docs/decisions/0003-sparse-updates.md). ours is the median step with the large tables, peer with the small ones, in
milliseconds; the two are timed in turn, and the ratio is the median of the rounds'. Every batch is new, as in
training. Items are drawn by a popularity that falls with their rank, the same ones at every size but for their ids,
which are spread over the table. Of `camf` the users are drawn from all there are, and alone grow: its items stay
10,000. A second row a model says what its input pipeline takes beside a step, alone, at the small size: below 1, the
model waits for no input.

The losses that look at every item (`full`, `hard`) are left out: they cost what the catalogue is large.

--strategy measures instead what a step costs that several take together: two logical devices of the CPU (mirrored), two
processes (multi_worker), or a chief, two workers and two servers (parameter_server; the time is that of a step of
either, while both work).
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf
from _processes import joined, replica_steps, say, server_steps, through, together
from _table import add_numbers, ended, parsed, plain_parser

from shortlist.components._cluster import ClusterConfig
from shortlist.components._examples import NextItemExamples
from shortlist.components._training import divide_cpu
from shortlist.models._optimizer import TableAdagrad
from shortlist.models.camf import CAMF, DEVIATIONS
from shortlist.models.two_tower import TwoTower
from shortlist.trainers._common import ALONE, Share, next_item_batches
from shortlist.trainers._ratings import RatingConfig, rating_batches
from shortlist.trainers._strategy import strategy_of
from shortlist.trainers.two_tower import Config

BAR = 1.3
USERS, EACH, BATCH = 2000, 60, 512
CONTEXTS = {"time": 5, "place": 4, "companion": 7}
QUICK = {"steps": 20, "rounds": 5, "models": ["two_tower in_batch", "two_tower mixed"]}
TOGETHER = ["two_tower in_batch", "camf CUCI"]
ROLES = {"mirrored": {}, "multi_worker": {"worker": 2}, "parameter_server": {"chief": 1, "worker": 2, "ps": 2}}


def examples(rows: int) -> NextItemExamples:
    """The same for every size but for the ids, which are spread over the whole table."""
    rng, stride = np.random.default_rng(0), rows // 10_000
    key = np.repeat(np.arange(USERS, dtype=np.int32), EACH)
    table = {
        "user_key": key,
        "user": rng.integers(2, 10_000, USERS, np.int32)[key] * stride,
        "item": popular_items(rows, len(key), rng),
        "timestamp": np.tile(np.arange(EACH), USERS),
        "positive": np.ones(len(key), bool),
    }
    return NextItemExamples(table, 50, 32)


def popular_items(rows: int, size: int, rng: np.random.Generator) -> np.ndarray:
    popularity = 1 / np.arange(1, 9_999)
    return (2 + rng.choice(9_998, size, p=popularity / popularity.sum()).astype(np.int32)) * (rows // 10_000)


def next_items(rows: int, share: Share = ALONE) -> tf.data.Dataset:
    return next_item_batches(examples(rows), Config(batch_size=BATCH, epochs=1000), 0, share)[0]


def rated(rows: int, share: Share = ALONE) -> tf.data.Dataset:
    rng, n = np.random.default_rng(0), USERS * EACH
    x = {name: rng.integers(0, size, n, np.int32) for name, size in CONTEXTS.items()}
    x |= {"user": rng.integers(2, rows, n, np.int32), "item": popular_items(10_000, n, rng)}
    config = RatingConfig(batch_size=BATCH, epochs=1000)
    return rating_batches(x, rng.integers(1, 6, n).astype(np.float32), config, 0, share)[0]


def camf(rows: int, deviation: str) -> tf.keras.Model:
    model = CAMF(rows, 10_000, CONTEXTS, deviation=deviation)
    model.compile(TableAdagrad(0.4))
    return model


def two_tower(rows: int, **arguments: Any) -> tf.keras.Model:
    model = TwoTower(rows, num_users=rows, long_history_length=50, num_genres=20, num_years=20, **arguments)
    model.set_content(np.ones((rows, 20), np.float32), np.ones(rows, np.int32))
    model.set_label_counts(np.random.default_rng(0).integers(1, 100, rows))
    model.compile(TableAdagrad(0.1))
    return model


MODELS: dict[str, tuple[Callable[[int], tf.keras.Model], Callable[..., tf.data.Dataset]]] = {
    "two_tower in_batch": (two_tower, next_items),
    "two_tower streaming logQ": (partial(two_tower, log_q="streaming"), next_items),
    "two_tower mixed": (partial(two_tower, softmax="mixed"), next_items),
    "two_tower uniform": (partial(two_tower, softmax="uniform"), next_items),
    "two_tower popularity": (partial(two_tower, softmax="popularity"), next_items),
    "two_tower hidden": (partial(two_tower, hidden_units=(128, 64), dropout=0.5, id_dropout=0.2), next_items),
    **{f"camf {name}": (partial(camf, deviation=name), rated) for name in DEVIATIONS},
}
"""By the number of rows of its tables, a compiled model, and its batches without end."""


def stepper(model: tf.keras.Model, batch: Iterator[Any], steps: int) -> Callable[[], float]:
    """Seconds of a step, over the next `steps` batches; the first call also traces."""
    return through(tf.function(model.train_step, reduce_retracing=True), [next(batch) for _ in range(steps)])


def drawn(batches: Iterator[Any], steps: int) -> float:
    """Seconds a batch, of the next `steps`."""
    started = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return (time.perf_counter() - started) / steps


def measure(name: str, a: argparse.Namespace) -> list[dict[str, Any]]:
    (model, batches), sizes = MODELS[name], (a.large, a.small)
    inputs = [iter(batches(rows)) for rows in sizes]
    runs = [stepper(model(rows), batch, a.steps) for rows, batch in zip(sizes, inputs, strict=True)]
    rows = [timed(f"{name}: ms a step", runs, a)]
    small = rows[0]["peer"]
    waited = 1e3 * statistics.median(drawn(inputs[1], a.steps) for _ in range(a.rounds))
    share = {"case": f"{name}: ms of input a step, against the step", "ours": round(waited, 2), "peer": small}
    return [*rows, {**share, "ratio": round(waited / small, 3), "bar": 1.0, "ok": waited <= small}]


def timed(case: str, runs: Sequence[Callable[[], float]], a: argparse.Namespace) -> dict[str, Any]:
    """The row of what a step takes with the large and with the small tables."""
    for run in runs:
        run()
    pairs = [tuple(run() for run in runs) for _ in range(a.rounds)]
    large, small = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(x / y for x, y in pairs)
    row = {"case": f"{case}, {a.large:,} against {a.small:,} rows", "ours": round(large, 2), "peer": round(small, 2)}
    return {**row, "ratio": round(ratio, 3), "bar": BAR, "ok": ratio <= BAR}


def shared(strategy: Any, a: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps that replicas or workers of a strategy take together."""
    stepper = server_steps if a.strategy == "parameter_server" else replica_steps
    rows = []
    for name in a.models:
        (make, batches), runs = MODELS[name], []
        for size in (a.large, a.small):
            with strategy.scope():
                model = make(size)
                model.optimizer.build(model.trainable_variables)
            runs.append(stepper(strategy, model, partial(batches, size), a.steps))
        rows.append(timed(f"{name}, {a.strategy}: ms a step", runs, a))
    return rows


def parse(argv: list[str]) -> argparse.Namespace:
    parser, names = plain_parser(__doc__, QUICK), list(MODELS)
    text = f"of {names}; with --strategy {TOGETHER}"
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME", help=text)
    parser.add_argument("--strategy", choices=["none", *ROLES], default="none", help="that alone; the default: none")
    parser.add_argument("--member", help=argparse.SUPPRESS)
    add_numbers(
        parser,
        ("large", 1_000_000, "rows of every table"),
        ("small", 10_000, "rows to compare with"),
        ("steps", 50, "timed a round"),
        ("rounds", 9, "how often each is timed"),
    )
    arguments = parsed(parser, argv, QUICK)
    if min(arguments.small, arguments.large) < 10_000:
        parser.error("--small and --large must be at least 10,000.")
    if arguments.strategy != "none" and arguments.models == names:
        arguments.models = TOGETHER
    return arguments


def main(argv: list[str]) -> int:
    a = parse(argv)
    if a.member:
        say(shared(joined(a.strategy, Path(a.member), ClusterConfig())[0], a))
    rows = []
    if a.strategy == "mirrored":
        divide_cpu(2)
        rows = shared(strategy_of(Config(strategy="mirrored")), a)
    elif a.strategy != "none":
        rows = together(__file__, [*argv, "--member"], ROLES[a.strategy], 3600)[0]
    for name in a.models if a.strategy == "none" else ():
        rows += measure(name, a)
        print(rows[-2:], file=sys.stderr)
    text = f"Batches of {BATCH}; {os.cpu_count()} CPUs, shared by the threads of TensorFlow."
    return ended(rows, text, file=a.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
