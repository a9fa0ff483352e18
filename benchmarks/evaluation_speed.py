"""Full-catalogue evaluation of a factorized model: ours, implicit's and TFRS's on the same random vectors.

Every user has held-out positives and seen items that are removed; the best k of the whole catalogue are found and
ranking metrics computed. Ours is `shortlist.components._top_k` and all of `Found.metrics`; implicit's is its
`ranking_metrics_at_k`; TFRS's is `FactorizedTopK` over `BruteForce`, which takes one query a positive and removes no
seen item. All run in this process, in turn, on the same number of threads; the table shows the median time and the
median ratio of ours to the peer of the same round. Peak memory is that of a process of its own.

TFRS is measured on the first --tfrs-queries of its queries, and its time is scaled to all of them: it is linear in
their number. implicit gets the number of BLAS threads (one, or --threads) that is faster for it on a sample.
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.pop("OPENBLAS_CORETYPE", None)  # a wrong one makes NumPy's products slow; it is read at the first import
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # TFRS needs Keras 2
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from _table import add_numbers, memory_of, parsed, plain_parser

FIRST = 2  # rows 0 and 1 of a table of items are reserved
QUICK = {"users": 4000, "items": 20_000, "tfrs_queries": 1024}
MEMORY_BAR = 2000  # MB


class Task:
    """Vectors, seen and held-out items. Every user's `seen + positives` items are different ones, drawn uniformly."""

    def __init__(self, arguments: argparse.Namespace):
        rng = np.random.default_rng(0)
        a = self.arguments = arguments
        self.users = rng.normal(size=(a.users, a.dim)).astype(np.float32)
        self.items = np.zeros((a.items + FIRST, a.dim), np.float32)
        self.items[FIRST:] = rng.normal(size=(a.items, a.dim))
        each = a.seen + a.positives
        drawn = np.sort(rng.integers(0, a.items - each + 1, (a.users, each), np.int32), axis=1) + np.arange(each)
        held = np.zeros((a.users, each), bool)
        held[:, : a.positives] = True
        held = rng.permuted(held, axis=1)
        self.targets = drawn[held].astype(np.int32) + FIRST
        self.seen = drawn[~held].astype(np.int32) + FIRST
        self.target_offsets = np.arange(a.users + 1) * a.positives
        self.seen_offsets = np.arange(a.users + 1) * a.seen

    def ours(self, users: int | None = None) -> float:
        """Hits a reachable target: what implicit calls precision."""
        from shortlist.components._top_k import top_k
        from shortlist.components.metrics import find_targets

        n, k = users or len(self.users), self.arguments.k
        seen, targets = self.seen_offsets[: n + 1], self.target_offsets[: n + 1]
        ranked = top_k(self.users[:n], self.items, k, seen, self.seen[: seen[-1]])
        metrics = find_targets(ranked, targets, self.targets[: targets[-1]]).metrics([min(10, k), k])
        return float(metrics[f"recall@{k}"].mean())

    def implicit(self, users: int | None = None) -> float:
        from implicit.cpu.als import AlternatingLeastSquares
        from implicit.evaluation import ranking_metrics_at_k
        from scipy.sparse import csr_matrix

        n = users or len(self.users)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of BLAS threads; `measure` picks the better number of them
            model = AlternatingLeastSquares(self.arguments.dim, num_threads=self.arguments.threads)
        model.user_factors, model.item_factors = self.users[:n], self.items[FIRST:]

        def matrix(offsets: np.ndarray, items: np.ndarray) -> Any:
            columns = items[: offsets[n]] - FIRST
            cells = np.ones(len(columns), np.float32), columns, offsets[: n + 1]
            return csr_matrix(cells, shape=(n, self.arguments.items))

        found = ranking_metrics_at_k(
            model,
            matrix(self.seen_offsets, self.seen),
            matrix(self.target_offsets, self.targets),
            K=self.arguments.k,
            show_progress=False,
            num_threads=self.arguments.threads,
        )
        return float(found["precision"])

    @cached_property
    def factorized_top_k(self) -> tuple[Any, Callable[..., Any]]:
        """The metric and its update, traced once."""
        import tensorflow as tf
        import tensorflow_recommenders as tfrs

        index = tfrs.layers.factorized_top_k.BruteForce(k=self.arguments.k).index(tf.constant(self.items[FIRST:]))
        metric = tfrs.metrics.FactorizedTopK(candidates=index, ks=[self.arguments.k])
        vectors = tf.TensorSpec([None, self.arguments.dim])

        def update(queries: Any, candidates: Any) -> None:
            metric.update_state(queries, candidates)

        return metric, tf.function(update, input_signature=[vectors, vectors])

    def tfrs(self, batch: int = 512) -> float:
        """Top-k accuracy of the first queries."""
        metric, update = self.factorized_top_k
        n = min(self.arguments.tfrs_queries, len(self.targets))
        owner = np.repeat(np.arange(len(self.users)), self.arguments.positives)
        metric.reset_states()
        for start in range(0, n, batch):
            rows = slice(start, min(start + batch, n))
            update(self.users[owner[rows]], self.items[self.targets[rows]])
        return float(metric.result()[0])


def limit_threads(threads: int) -> None:
    """Of NumPy's and implicit's products and loops, and of numba."""
    import numba
    import threadpoolctl

    threadpoolctl.threadpool_limits(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def limit_tensorflow(threads: int) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def timed(call: Callable[[], float]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(task: Task) -> dict[str, list[float]]:
    """Seconds of each round by system."""
    import threadpoolctl

    a = task.arguments
    limit_threads(a.threads)
    limit_tensorflow(a.threads)
    sample = min(2000, a.users)
    ours, theirs = task.ours(sample), task.implicit(sample)  # also compiles and loads
    if abs(ours - theirs) > 1e-3 * max(ours, theirs):
        raise SystemExit(f"Ours and implicit must find the same items. Received: {ours} and {theirs} of the targets.")
    trials = {}
    for blas in {1, a.threads}:
        with threadpoolctl.threadpool_limits(blas):
            trials[blas] = min(timed(lambda: task.implicit(sample)) for _ in range(2))
    blas = min(trials, key=lambda n: trials[n])
    print(f"implicit runs with {a.threads} threads of its own and {blas} of BLAS.", file=sys.stderr)
    task.tfrs()
    queries = min(a.tfrs_queries, len(task.targets))
    seconds: dict[str, list[float]] = {"ours": [], "implicit": [], "tfrs": []}
    for number in range(1, a.rounds + 1):
        seconds["ours"].append(timed(task.ours))
        with threadpoolctl.threadpool_limits(blas):
            seconds["implicit"].append(timed(task.implicit))
        seconds["tfrs"].append(timed(task.tfrs) * len(task.targets) / queries)
        shown = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(f"round {number} of {a.rounds}: {shown}", file=sys.stderr)
    return seconds


def peak_memory(name: str, task: Task) -> int:
    """MB (1e6 bytes) that this process has held at most, after one evaluation."""
    limit_threads(task.arguments.threads)
    if name == "tfrs":
        limit_tensorflow(task.arguments.threads)
    getattr(task, name)()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 // 1_000_000


def rows(seconds: dict[str, list[float]], memory: dict[str, int], a: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for peer, bar in (("implicit", 1.0), ("tfrs", 0.1)):
        ratio = statistics.median(x / y for x, y in zip(seconds["ours"], seconds[peer], strict=True))
        ours, theirs = (round(statistics.median(seconds[name]), 3) for name in ("ours", peer))
        case = f"{a.users:,} × {a.items:,}, D = {a.dim}, top {a.k}: seconds, {peer}"
        case += f", scaled from {min(a.tfrs_queries, a.users * a.positives):,} queries" if peer == "tfrs" else ""
        found.append(
            {"case": case, "ours": ours, "peer": theirs, "ratio": round(ratio, 4), "bar": bar, "ok": ratio <= bar}
        )
    for peer in ("implicit", "tfrs"):
        row = {"case": f"peak memory in MB, {peer}", "ours": memory["ours"], "peer": memory[peer], "ratio": None}
        found.append({**row, "bar": MEMORY_BAR, "ok": memory["ours"] < MEMORY_BAR})
    return found


def show(found: list[dict[str, Any]], threads: int) -> None:
    print(
        f"\n{threads} threads each. ratio = ours / peer; the bar is the most that the ratio, or ours in MB, may be.\n"
    )
    width = max(len(row["case"]) for row in found)
    print(f"{'case':<{width}}  {'ours':>9}  {'peer':>9}  {'ratio':>7}  {'bar':>6}  ok")
    for row in found:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        numbers = f"{row['ours']:>9}  {row['peer']:>9}  {ratio:>7}  {row['bar']:>6}"
        print(f"{row['case']:<{width}}  {numbers}  {'yes' if row['ok'] else 'NO'}")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = plain_parser(__doc__, QUICK)
    add_numbers(
        parser,
        ("users", 50_000, "users, each a query"),
        ("items", 50_000, "items of the catalogue"),
        ("dim", 64, "D, length of the vectors"),
        ("positives", 10, "held-out items a user"),
        ("seen", 50, "items a user that are removed"),
        ("k", 100, "length of the lists"),
        ("threads", 2, "of each system"),
        ("rounds", 5, "how often each is measured"),
        ("tfrs-queries", 5120, "queries that TFRS is measured on, of users × positives"),
    )
    parser.add_argument("--memory", choices=("ours", "implicit", "tfrs"), help=argparse.SUPPRESS)
    arguments = parsed(parser, argv, QUICK)
    for name in ("users", "items", "dim", "positives", "k", "threads", "rounds", "tfrs_queries"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1. Received: {getattr(arguments, name)}.")
    if arguments.k > arguments.items - arguments.seen or arguments.seen < 0:
        parser.error("--k must be at most --items less --seen, and --seen at least 0.")
    return arguments


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    task = Task(arguments)
    if arguments.memory:
        print(peak_memory(arguments.memory, task))
        return 0
    memory = {name: memory_of(__file__, argv, name) for name in ("ours", "implicit", "tfrs")}
    found = rows(measure(task), memory, arguments)
    show(found, arguments.threads)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
    return 0 if all(row["ok"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
