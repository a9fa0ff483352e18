"""Bytes that each replica or server holds, and that a step brings it, against the formulas of docs/scaling.md.

ours is what was measured, peer the formula. Held: the variables of a model and its optimizer on each device, by their
shapes. Received: what came in through the TCP connections of a process while it took `STEPS` steps on one batch, in KB
a step, the messages around the numbers included. `mirrored` does within a process what `multi_worker` does between
several, and nothing counts it there, so only what it holds is measured. Under parameter servers one worker works:
received is what comes to it, sent what it sends away.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import json

import numpy as np
import tensorflow as tf
from _processes import joined, replica_steps, say, server_steps, together, traffic
from _table import ended, parsed, plain_parser

from shortlist.components._cluster import ClusterConfig
from shortlist.components._training import divide_cpu
from shortlist.models._optimizer import AdamWithTables, TableAdagrad
from shortlist.models.camf import CAMF
from shortlist.models.two_tower import TwoTower
from shortlist.models.weighted_logistic import WeightedLogistic
from shortlist.trainers._common import Share
from shortlist.trainers._strategy import strategy_of
from shortlist.trainers.two_tower import Config

ITEMS, USERS, DIM, BATCH, LENGTH, STEPS, FEATURES = 20_000, 30_000, 32, 1024, 10, 8, 8
CONTEXTS = {"place": 9}
HELD, MOVED = 1.001, 1.1
"""How many times the formula may be measured: messages are more than the numbers in them."""
QUICK = {"replicas": [1, 2]}


def batch_of(case: str) -> Any:
    """A batch; items and users are drawn evenly, so that few are there twice."""
    rng = np.random.default_rng(0)
    item, user = (rng.integers(2, size, BATCH).astype(np.int32) for size in (ITEMS, USERS))
    history = rng.integers(2, ITEMS, (BATCH, LENGTH)).astype(np.int32)
    if case.startswith("two_tower"):
        zeros = np.zeros((BATCH, LENGTH), np.int64)
        return {"user": user, "history": history, "history_time": zeros, "time": zeros[:, 0], "label": item}
    if case == "camf":
        place = rng.integers(1, 10, BATCH).astype(np.int32)
        return {"user": user, "item": item, "context_place": place}, rng.random(BATCH).astype(np.float32)
    features = rng.random((BATCH, FEATURES)).astype(np.float32)
    label = (rng.random(BATCH) < 0.5).astype(np.float32)
    return {"features": features, "item": item, "history": history}, label, label + 1


def model_of(case: str) -> tf.keras.Model:
    if case == "camf":
        model = CAMF(USERS, ITEMS, CONTEXTS, "CUCI", DIM)
        model.compile(TableAdagrad(0.1))
    elif case == "weighted_logistic":
        model = WeightedLogistic(
            FEATURES, (64,), cross_layers=1, embedding_dim=DIM, num_items=ITEMS, history_length=LENGTH
        )
        model.compile(AdamWithTables(0.01, 0.05))
    else:
        model = TwoTower(ITEMS, USERS, DIM, LENGTH, hidden_units=(64,), softmax=case.removeprefix("two_tower "))
        model.compile(TableAdagrad(0.1))
    model.optimizer.build(model.trainable_variables)
    return model


CASES = ["two_tower in_batch", "two_tower full", "camf", "weighted_logistic"]


def batches(case: str, share: Share) -> tf.data.Dataset:
    whole = batch_of(case)

    def parts() -> Iterator[Any]:
        for part in share.slices(0, BATCH):
            yield tf.nest.map_structure(lambda values, part=part: values[part], whole)

    spec = tf.nest.map_structure(lambda v: tf.TensorSpec([None, *v.shape[1:]], v.dtype), whole)
    return tf.data.Dataset.from_generator(parts, output_signature=spec)


# --- the formulas ----------------------------------------------------------------------------------------------------


def different(case: str, replicas: int) -> dict[str, int]:
    """n: of each table, the most different rows in the part of a replica; of deviations, the cells."""
    batch = batch_of(case)
    x = batch if isinstance(batch, dict) else batch[0]
    parts = [slice(i * BATCH // replicas, (i + 1) * BATCH // replicas) for i in range(replicas)]
    keys = {"item": x.get("item", x.get("label")), "user": x.get("user"), "history": x.get("history")}
    if case == "camf":
        keys |= {f"{side} cells": keys[side] * 10 + x["context_place"] for side in ("item", "user")}
    if case == "weighted_logistic":  # one table for both
        keys = {"item": np.concatenate([x["item"][:, np.newaxis], x["history"]], axis=1)}
    return {name: max(len(np.unique(v[part])) for part in parts) for name, v in keys.items() if v is not None}


def dense(case: str) -> int:
    """P: the numbers of the dense layers."""
    model = model_of(case)
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables if v.shape[0] not in (ITEMS, USERS))


def held(case: str) -> float:
    if case == "camf":
        return 8 * (DIM + 1) * (USERS + ITEMS) + 4 * (USERS + ITEMS) + 12 * 10 * (USERS + ITEMS)
    if case == "weighted_logistic":
        return 12 * DIM * ITEMS + 12 * dense(case) + 3656 * FEATURES  # and what the numbers are normalized by
    return 8 * DIM * (2 * ITEMS + USERS) + 8 * ITEMS + 8 * dense(case)


def received(case: str, replicas: int) -> float:
    n, ring = different(case, replicas), 2 * (replicas - 1) / replicas
    if case == "camf":
        own = 4 * (DIM + 2) * (n["item"] + n["user"]) + 12 * (n["item cells"] + n["user cells"])
        return (replicas - 1) * own
    if case == "weighted_logistic":
        return (replicas - 1) * 4 * (DIM + 1) * n["item"] + ring * 4 * dense(case)
    if case == "two_tower full":
        own = 4 * (DIM + 1) * (n["history"] + n["user"])
        return (replicas - 1) * own + ring * 4 * (dense(case) + ITEMS * DIM)
    own = 4 * (DIM + 1) * (n["history"] + n["user"] + n["item"])
    return (replicas - 1) * own + ring * 4 * (dense(case) + 2 * BATCH * DIM + BATCH)


def fetched(case: str) -> float:
    """What servers send a worker a step: rows as often as they are looked up, and the dense layers."""
    n = different(case, 1)
    if case == "camf":
        return 4 * (DIM + 4) * 2 * BATCH  # with the shares of both, deviations and the shares of these
    if case == "weighted_logistic":
        return 4 * DIM * BATCH * (LENGTH + 1) + 4 * dense(case) + 3648 * FEATURES
    items, constants = (ITEMS, 1) if case == "two_tower full" else (n["item"], 2)
    return 4 * DIM * (items + BATCH + n["history"]) + 4 * constants * items + 4 * dense(case)


def given(case: str) -> float:
    """What a worker sends the servers a step: the numbers of the rows to look up, and the gradients, each row once."""
    n = different(case, 1)
    if case == "camf":
        return 12 * 2 * BATCH + 4 * (DIM + 2) * (n["item"] + n["user"]) + 12 * (n["item cells"] + n["user cells"])
    if case == "weighted_logistic":
        return 4 * BATCH * (LENGTH + 1) + 4 * (DIM + 1) * n["item"] + 4 * dense(case)
    ids = BATCH + n["history"] + (0 if case == "two_tower full" else n["item"])  # a server knows all rows by itself
    items = ITEMS if case == "two_tower full" else n["item"]
    return 4 * ids + 4 * (DIM + 1) * (items + n["user"] + n["history"]) + 4 * dense(case)


# --- what is measured ------------------------------------------------------------------------------------------------


def by_device(model: tf.keras.Model) -> dict[str, int]:
    """Bytes of the variables on each device, those that count for metrics left out."""
    counted = {id(v) for metric in model.metrics for v in metric.variables}
    found: dict[str, int] = {}
    for variable in (*(v for v in model.variables if id(v) not in counted), *model.optimizer.variables):
        for own in getattr(variable, "values", None) or getattr(variable, "variables", None) or [variable]:
            size = int(np.prod(own.shape)) * own.dtype.size
            found[own.device] = found.get(own.device, 0) + size
    return found


def measure(case: str, strategy: Any, name: str, count: Callable[[], np.ndarray] | None) -> dict[str, Any]:
    with strategy.scope():
        model = model_of(case)
    found: dict[str, Any] = {"held": by_device(model)}
    if count is not None:
        steps = server_steps if name == "parameter_server" else replica_steps
        run = steps(strategy, model, lambda share: batches(case, share).repeat(STEPS), STEPS)
        run()
        before = count()
        run()
        found["moved"] = ((count() - before) / STEPS).tolist()
    return found


PAUSE = 0.2


def tell_traffic(file: Path) -> None:
    """Writes down what this process has received and sent, again and again."""
    while True:
        file.with_suffix(".new").write_text(json.dumps(traffic().tolist()))
        file.with_suffix(".new").rename(file)
        time.sleep(PAUSE)


def member(name: str, replicas: int, cases: list[str], folder: Path) -> dict[str, Any]:
    """What one of several processes measures."""
    count: Callable[[], np.ndarray] | None = traffic
    if name == "mirrored":
        divide_cpu(replicas)
        strategy, count = strategy_of(Config(strategy="mirrored")), None
    else:
        file = folder / "worker.traffic"
        if json.loads(os.environ["TF_CONFIG"])["task"]["type"] == "worker" and name == "parameter_server":
            threading.Thread(target=tell_traffic, args=(file,), daemon=True).start()
        strategy, _ = joined(name, folder, ClusterConfig(min_shard_bytes=1024))
        if name == "parameter_server":

            def count() -> np.ndarray:
                time.sleep(3 * PAUSE)
                return np.array(json.loads(file.read_text()))

    return {case: measure(case, strategy, name, count) for case in cases}


def run(name: str, replicas: int, cases: list[str]) -> list[dict[str, Any]]:
    """What each process found that trains."""
    arguments = ["--replicas", str(replicas), "--cases", *cases, "--strategy", name, "--member"]
    if name == "mirrored":
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, *arguments, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return [json.loads(done.stdout.splitlines()[-1])]
    roles = {"worker": replicas} if name == "multi_worker" else {"chief": 1, "worker": 1, "ps": replicas}
    return together(__file__, arguments, roles, 900)


def rows_of(name: str, replicas: int, cases: list[str]) -> list[dict[str, Any]]:
    found, rows = run(name, replicas, cases), []
    servers = name == "parameter_server"
    for case in cases:
        print(case, name, replicas, [one[case] for one in found], file=sys.stderr)
        where = f"{case}, {name} {replicas}"
        most = max(size for one in found for size in one[case]["held"].values())
        formula = held(case) / (replicas if servers else 1)
        rows.append(row(f"{where}: held by a {'server' if servers else 'replica'}", most, formula, HELD))
        if servers:
            come, sent = found[0][case]["moved"]
            rows.append(row(f"{where}: received by a worker", come, fetched(case), MOVED))
            rows.append(row(f"{where}: sent by a worker", sent, given(case), MOVED))
        elif name == "multi_worker":
            come = max(one[case]["moved"][0] for one in found)
            rows.append(row(f"{where}: received by a replica", come, received(case, replicas), MOVED))
    return rows


def row(case: str, ours: float, formula: float, most: float) -> dict[str, Any]:
    ratio = ours / formula
    kb = {"case": case, "ours": round(ours / 1e3, 1), "peer": round(formula / 1e3, 1), "ratio": round(ratio, 4)}
    return {**kb, "bar": most, "ok": 1 / most <= ratio <= most}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = plain_parser(__doc__, QUICK)
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 2, 4], metavar="N", help="or servers (1 2 4)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=f"of {CASES}")
    ways = ["mirrored", "multi_worker", "parameter_server"]
    parser.add_argument("--strategy", nargs="+", choices=ways, default=ways, metavar="NAME", help=f"of {ways}")
    parser.add_argument("--member", type=Path, help=argparse.SUPPRESS)
    return parsed(parser, argv, QUICK)


def main(argv: list[str]) -> int:
    a = parse(argv)
    if a.member:
        say(member(a.strategy[0], a.replicas[0], a.cases, a.member))
    rows = []
    for name in a.strategy:
        for replicas in a.replicas:
            if name != "multi_worker" or replicas > 1:
                rows += rows_of(name, replicas, a.cases)
    return ended(rows, f"Batches of {BATCH}; KB.", file=a.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
