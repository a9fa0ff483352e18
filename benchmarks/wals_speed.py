"""Seconds of one iteration of WALS (items, then users): ours and implicit's on the same matrix, in turn.

The matrix is random, its rows and columns drawn by power laws; --users, --items and --cells give it MovieLens-1M's
shape. Both solve Hu, Koren and Volinsky's objective: confidence 1 + α in the cells, 1 elsewhere. implicit is timed in
the two native calls that are its iteration, with one thread of BLAS and --threads of its own; ours is `half_step`,
a side each. All run in this process, in turn; the table shows the median times and the median ratio of
a pair. irspack and our TensorFlow path, which is the one for other devices, are there too. Peak memory is what a
process of its own holds at most, code aside, above what it held before the data was read, the median of three.
"""

import argparse
import ctypes
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from _table import add_numbers, memory_of, parsed, plain_parser

ALPHA, L2, CG_STEPS = 10.0, 0.1, 3
ITERATIONS = 12  # of the peer, whose loss is to be reached: what trainers/configs/wals.toml trains for
BARS = {"cg": {64: 0.6, 128: 0.8, 256: 1.0}, "cholesky": {64: 0.8, 128: 0.8, 256: 0.8}}
TENSORFLOW_BARS = {"cg": 2.5, "cholesky": 3.0}
QUICK = {"dims": [64], "cells": 500_000}


def power_law(users: int, items: int, cells: int) -> np.ndarray:
    """The rows and columns of different cells, int64 `[cells, 2]`, by row."""
    rng = np.random.default_rng(0)
    shares = [(np.arange(n) + n / 100) ** -0.8 for n in (users, items)]
    found = np.empty(0, np.int64)
    while len(found) < cells:
        row, column = (rng.choice(len(share), cells, p=share / share.sum()) for share in shares)
        found = np.union1d(found, row * items + column)
    return np.stack(np.divmod(np.sort(rng.permutation(found)[:cells]), items), axis=1)


class System(NamedTuple):
    """`step` is one iteration; `factors` gives those of the users and of the items."""

    step: Callable[[], Any]
    factors: Callable[[], tuple[np.ndarray, np.ndarray]]


class Task:
    """One matrix, and one iteration of it by each system, each from a start of its own."""

    def __init__(self, users: int, items: int, cells: int, threads: int):
        import tensorflow as tf

        self.shape, self.threads = (users, items), threads
        self.indices = tf.identity(power_law(users, items, cells))  # without it, the tensor would hold a second copy
        self.places = np.asarray(self.indices)  # a view

    def loss(self, users: np.ndarray, items: np.ndarray) -> float:
        """The objective, which all systems share."""
        total = float(((users.T @ users).astype(np.float64) * (items.T @ items)).sum())
        for part in np.array_split(self.places, 20):
            score = np.einsum("nd,nd->n", users[part[:, 0]], items[part[:, 1]]).astype(np.float64)
            total += float(((1 + ALPHA) * (1 - score) ** 2 - score**2).sum())
        return total + L2 * float((users.astype(np.float64) ** 2).sum() + (items.astype(np.float64) ** 2).sum())

    def ours(self, dim: int, solver: str, backend: str = "numba") -> System:
        import tensorflow as tf

        from shortlist.models._wals import read_sides
        from shortlist.models.wals import WALS

        x = tf.SparseTensor(self.indices, tf.ones(len(self.places)), self.shape)
        options = {"solver": solver, "cg_steps": CG_STEPS, "backend": backend}
        scale = 1 / (1 + ALPHA)  # of the objective, so that cells have confidence 1, which needs no tensor
        model = WALS(dim, unobserved_weight=scale, l2=scale * L2, frequency_exponent=0.0, **options)
        by_user, by_item = read_sides(x, None, dim)
        model.build(self.shape)

        def iterate() -> None:
            model.half_step("items", by_item)
            model.half_step("users", by_user)

        return System(iterate, lambda: (model.user_factors.numpy(), model.item_factors.numpy()))

    def implicit(self, dim: int, solver: str) -> System:
        from implicit.cpu import _als
        from scipy.sparse import csr_matrix

        values = np.full(len(self.places), 1 + ALPHA, np.float32)
        by_user = csr_matrix((values, self.places.T), self.shape)
        by_item = by_user.T.tocsr()
        rng = np.random.default_rng(0)
        users, items = (rng.normal(0, 0.1 / dim**0.5, (n, dim)).astype(np.float32) for n in self.shape)

        def iterate() -> None:
            for cells, own, other in ((by_item, items, users), (by_user, users, items)):
                if solver == "cg":
                    _als.least_squares_cg(cells, own, other, L2, num_threads=self.threads, cg_steps=CG_STEPS)
                else:
                    _als.least_squares(cells, own, other, L2, num_threads=self.threads)

        return System(iterate, lambda: (users, items))

    def irspack(self, dim: int, solver: str) -> System:
        from irspack.recommenders.ials import IALSTrainer, LossType, str_to_solver_type
        from scipy.sparse import csr_matrix

        x = csr_matrix((np.ones(len(self.places), np.float32), self.places.T), self.shape)
        start, native = (ALPHA, L2, 0.0, 0.1, str_to_solver_type(solver)), (LossType.ORIGINAL, 0, self.threads)
        trainer = IALSTrainer(x, dim, *start, CG_STEPS, 64, *native, CG_STEPS, 1)
        return System(trainer.run_epoch, lambda: (trainer.user, trainer.item))


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def paired(ours: System, peer: System, rounds: int) -> tuple[float, float, float]:
    """The median seconds of each, and the median ratio of a pair."""
    ours.step(), peer.step()  # compiles and loads
    pairs = [(seconds(ours.step), seconds(peer.step)) for _ in range(rounds)]
    first, second = (statistics.median(values) for values in zip(*pairs, strict=True))
    return first, second, statistics.median(x / y for x, y in pairs)


def row(case: str, ours: float, peer: float, ratio: float, bar: float | None) -> dict[str, Any]:
    found = {"case": case, "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(ratio, 3), "bar": bar}
    print(f"{case}: {found['ratio']}", file=sys.stderr)
    return {**found, "ok": bar is None or ratio <= bar}


def speed(task: Task, a: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for dim in a.dims:
        for solver in ("cg", "cholesky"):
            case = f"{len(task.places):,} cells, D = {dim}, {solver}: seconds"
            ours, implicit = task.ours(dim, solver), task.implicit(dim, solver)
            bar = BARS[solver].get(dim)
            found.append(row(f"{case}, implicit", *paired(ours, implicit, a.rounds), bar))
            found.append(row(f"{case}, irspack", *paired(ours, task.irspack(dim, solver), a.rounds), None))
            graph = task.ours(dim, solver, "tensorflow")
            measured = paired(graph, implicit, a.rounds)
            found.append(row(f"{case}, TensorFlow path to implicit", *measured, TENSORFLOW_BARS[solver]))
    return found


def time_to_loss(
    task: Task, case: str, ours: Callable[[], System], peer: Callable[[], System], rounds: int, bar: float | None
) -> dict[str, Any]:
    """Seconds in which ours gets to the loss that the peer has after ITERATIONS, against the peer's."""
    ours().step(), peer().step()  # compiles
    pairs = []
    for _ in range(rounds):
        (first, second), taken = (ours(), peer()), 0.0
        spent = sum(seconds(second.step) for _ in range(ITERATIONS))
        goal, loss = task.loss(*second.factors()) * (1 + 1e-4), float("inf")
        for _ in range(3 * ITERATIONS):
            taken += seconds(first.step)
            loss = task.loss(*first.factors())
            if loss <= goal:
                break
        pairs.append((taken if loss <= goal else float("inf"), spent))
    medians = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(x / y for x, y in pairs)
    return row(f"{len(task.places):,} cells, {case}: seconds to the same loss (to 1e-4)", *medians, ratio, bar)


def larger(task: Task, dim: int, a: argparse.Namespace) -> list[dict[str, Any]]:
    """Ten times the cells, with the sides that MovieLens-10M has where the matrix is that of MovieLens-1M."""
    users, items = task.shape
    large = Task(users * 10, items * 3, len(task.places) * 10, a.threads)
    case = f"{len(large.places):,} cells, D = {dim}, cg: seconds"
    ours, peers = large.ours(dim, "cg"), {"implicit": large.implicit(dim, "cg"), "irspack": large.irspack(dim, "cg")}
    found = [
        row(f"{case}, {name}", *paired(ours, peer, a.rounds), BARS["cg"].get(dim) if name == "implicit" else None)
        for name, peer in peers.items()
    ]
    growth = paired(ours, task.ours(dim, "cg"), a.rounds)
    return [*found, row(f"{case}, to those of {len(task.places):,}", *growth, 11.0)]


def anonymous() -> int:
    """Bytes that this process holds and that no file backs: its code comes and goes as the machine likes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def peak_memory(name: str, a: argparse.Namespace) -> int:
    """MB (1e6 bytes) that one system's data and two iterations take at most, looked at every millisecond.

    The indices of the cells count on our side, since a SparseTensor holds them, and not on implicit's, which makes
    its own from them.
    """
    dim, done = a.dims[0], threading.Event()
    getattr(Task(50, 40, 300, a.threads), name)(dim, "cg").step()  # imports and compiles
    task = Task(a.users, a.items, a.cells, a.threads)
    ctypes.CDLL(None).malloc_trim(0)  # gives back what drawing the matrix took
    seen = [anonymous()]

    def look() -> None:
        while not done.wait(0.001):
            seen.append(anonymous())

    watcher = threading.Thread(target=look)
    watcher.start()
    system = getattr(task, name)(dim, "cg")
    system.step(), system.step()
    done.set()
    watcher.join()
    held = task.places.nbytes if name == "ours" else 0
    return (max(seen) - seen[0] + held) // 1_000_000


def memory(argv: list[str], a: argparse.Namespace) -> dict[str, Any]:
    found = {
        name: statistics.median(memory_of(__file__, argv, name) for _ in range(3)) for name in ("ours", "implicit")
    }
    ratio = found["ours"] / max(found["implicit"], 1)
    return row(
        f"{a.cells:,} cells, D = {a.dims[0]}, cg: peak memory in MB", found["ours"], found["implicit"], ratio, 1.5
    )


def show(found: list[dict[str, Any]], threads: int) -> None:
    print(f"\n{threads} threads each. ratio = ours / peer; the bar is the most that it may be.\n")
    width = max(len(line["case"]) for line in found)
    print(f"{'case':<{width}}  {'ours':>8}  {'peer':>8}  {'ratio':>6}  {'bar':>5}  ok")
    for line in found:
        numbers = f"{line['ours']:>8}  {line['peer']:>8}  {line['ratio']:>6}  {line['bar'] or '':>5}"
        print(f"{line['case']:<{width}}  {numbers}  {'yes' if line['ok'] else 'NO'}")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = plain_parser(__doc__, QUICK)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128, 256], help="D (64 128 256)")
    add_numbers(
        parser,
        ("users", 6040, "rows of the matrix"),
        ("items", 3706, "columns"),
        ("cells", 1_000_000, "cells"),
        ("threads", 2, "of each system"),
        ("rounds", 5, "pairs measured"),
    )
    parser.add_argument("--memory", choices=("ours", "implicit"), help=argparse.SUPPRESS)
    a = parsed(parser, argv, QUICK)
    if min(a.users, a.items, a.cells, a.threads, a.rounds, *a.dims) < 1 or a.cells > a.users * a.items // 2:
        parser.error("every number must be at least 1, and --cells at most half of --users × --items.")
    return a


def main(argv: list[str]) -> int:
    import numba
    import tensorflow as tf
    import threadpoolctl

    a = parse(argv)
    numba.set_num_threads(min(a.threads, numba.config.NUMBA_NUM_THREADS))
    tf.config.threading.set_intra_op_parallelism_threads(a.threads)
    if a.memory:
        print(peak_memory(a.memory, a))
        return 0
    task = Task(a.users, a.items, a.cells, a.threads)
    with threadpoolctl.threadpool_limits(1, "blas"):
        found = speed(task, a)
        if not a.quick:
            dim = a.dims[-1]
            start = {name: partial(task.ours, dim, name) for name in ("block", "cholesky")}
            case = f"D = {dim}, block to cholesky"
            found.append(time_to_loss(task, case, start["block"], start["cholesky"], 3, 0.5 if dim == 256 else None))
            for dim in a.dims:
                ours, implicit = partial(task.ours, dim, "cg"), partial(task.implicit, dim, "cg")
                found.append(time_to_loss(task, f"D = {dim}, cg, implicit", ours, implicit, 3, None))
            found += larger(task, a.dims[0], a)
    found.append(memory(argv, a))
    show(found, a.threads)
    if a.json:
        a.json.write_text(json.dumps(found, indent=2))
    return 0 if all(line["ok"] for line in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
