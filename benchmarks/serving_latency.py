"""How long one call of the served graph's `recommend` takes, beside the parts that it cannot do without, timed apart.

Ours retrieves from two factorized sources, fuses, leaves out what is excluded, computes the ranker's features, ranks
and returns ids. The parts are two TFRS `BruteForce` retrievals of as many candidates, and the ranker's dense layers on
the candidates of both, all on random vectors. A ratio is that of the medians over all calls.

TensorFlow has its threads for a process, so two processes take turns, call by call, on the same cores. In both so many
operations run at once as there are threads. In one an operation has one thread: as `shortlist serve` and the pushed
docker-compose.yaml have it, and ours is measured. In the other it has all of them. The parts are measured in both, and
the faster sum counts. A row without a bar tells of ours and the parts in the second alone.

The other rows are of memory, in MB: what calls take for as long as they last, beside a table of vectors, which none may
copy; and by how much the peak over many calls lies above that of the first ones.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # TFRS needs Keras 2
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from _table import add_numbers, ended, parsed, plain_parser

QUICK = {"items": [10_000], "batch": [1, 8], "calls": 20, "requests": 300}
BAR, MEMORY_BAR = 1.3, 20.0
FIRST, GENRES, USERS, LENGTH, K, NOW = 2, 18, 1_000, 50, 10, 1_700_000_000
UNITS = (512, 256)


class Task:
    """A servable over `items` random items, and its parts."""

    def __init__(self, items: int, a: argparse.Namespace, folder: Path, seed: int = 0):
        import tensorflow as tf
        import tensorflow_recommenders as tfrs

        from shortlist.models._bundle import Servable, Stored
        from shortlist.models._ranking_features import Catalogue, RankingFeatures
        from shortlist.models._shortlist import Shortlist
        from shortlist.models.weighted_logistic import WeightedLogistic

        rng = np.random.default_rng(seed)
        self.items, self.arguments = items, a
        rows = items + FIRST
        tables = [rng.normal(size=(rows, a.dim)).astype(np.float32) for _ in range(2)]

        class Source(tf.Module):
            def __init__(self, vectors: np.ndarray):
                super().__init__()
                self.vectors = tf.Variable(vectors, trainable=False)
                self.users = tf.Variable(rng.normal(size=(USERS + FIRST, a.dim)).astype(np.float32), trainable=False)

            def scores(self, query: dict[str, Any]) -> Any:
                return tf.linalg.matmul(tf.gather(self.users, query["user"]), self.vectors, transpose_b=True)

        count = np.floor(rng.pareto(1.0, rows) * 5).astype(np.float32)
        times = rng.integers(NOW - 10**8, NOW, (2, rows))
        catalogue = Catalogue(
            genres=(rng.random((rows, GENRES)) < 0.15).astype(np.float32),
            year=rng.integers(1950, 2024, rows),
            count=count,
            recent_count=np.floor(count / 2),
            first_time=times.min(axis=0),
            last_time=times.max(axis=0),
        )
        names, quota = ("first", "second"), (a.candidates, a.candidates)
        features = RankingFeatures(catalogue, dict(zip(names, tables, strict=True)), names, LENGTH, quota)
        sources = {name: Source(table) for name, table in zip(names, tables, strict=True)}
        size = 2 * a.candidates
        shortlist = Shortlist(sources, dict.fromkeys(names, a.candidates), size, catalogue.recent_count, features)
        ranker = WeightedLogistic(len(features.names), UNITS)
        ranker.adapt(rng.normal(size=(5_000, len(features.names))).astype(np.float32))
        ids = np.array(["", "", *(f"item {n}" for n in range(items))])
        for name, lines in (("items", ids[FIRST:]), ("users", [f"user {n}" for n in range(USERS)])):
            (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
        nothing = np.zeros(0, np.int32)
        stored = Stored(np.zeros(USERS + FIRST + 1), nothing, nothing, nothing > 0, nothing > 0, nothing)
        files = (str(folder / "items.txt"), str(folder / "users.txt"), str(folder / "items.txt"))
        self.servable = Servable(shortlist, ranker, *files, ids, stored, NOW)
        self.ids, self.rng = ids, rng
        index = tfrs.layers.factorized_top_k.BruteForce(k=a.candidates)
        indexes = [index.index(tables[0]), tfrs.layers.factorized_top_k.BruteForce(k=a.candidates).index(tables[1])]
        self.indexes = [
            tf.function(lambda q, i=i: i(q), input_signature=[tf.TensorSpec([None, a.dim])]) for i in indexes
        ]
        layers = tf.keras.Sequential([*(tf.keras.layers.Dense(n, "relu") for n in UNITS), tf.keras.layers.Dense(1)])
        width = int(ranker.hidden[0].kernel.shape[0])  # the features in their powers and standardized
        spec = tf.TensorSpec([None, size, width])
        self.layers = tf.function(lambda x: layers(x), input_signature=[spec])
        self.shape = (size, width)

    def request(self, batch: int) -> dict[str, Any]:
        import tensorflow as tf

        def some(width: int) -> Any:
            return tf.constant(self.ids[self.rng.integers(FIRST, len(self.ids), (batch, width))])

        return {
            "user": tf.constant([f"user {n}" for n in self.rng.integers(0, USERS, batch)]),
            "history": some(LENGTH),
            "exclude": some(LENGTH),
            "time": tf.fill([batch], tf.constant(NOW, tf.int64)),
            "k": tf.fill([batch], K),
        }

    def calls(self, batch: int) -> dict[str, Callable[[], Any]]:
        """A call of each, by name; what is given is made before."""
        import tensorflow as tf

        request = self.request(batch)
        query = tf.random.normal([batch, self.arguments.dim])
        inputs = tf.random.normal([batch, *self.shape])
        return {
            "ours": lambda: self.servable.recommend(**request)["items"].numpy(),
            "retrieve": lambda: self.servable.retrieve(**request)["items"].numpy(),
            "first retrieval": lambda: self.indexes[0](query)[1].numpy(),
            "second retrieval": lambda: self.indexes[1](query)[1].numpy(),
            "dense layers": lambda: self.layers(inputs).numpy(),
        }


PARTS = ("first retrieval", "second retrieval", "dense layers")


def timed(task: Task, batch: int) -> dict[str, float]:
    """Milliseconds of one call of each, by name."""
    found = {}
    for name, call in task.calls(batch).items():
        started = time.perf_counter()
        call()
        found[name] = 1000 * (time.perf_counter() - started)
    return found


class Apart:
    """A process with a task of its own, in which an operation has so many threads."""

    def __init__(self, items: int, threads: int, a: argparse.Namespace):
        context = multiprocessing.get_context("spawn")
        self.asked, others = context.Pipe()
        self.process = context.Process(target=answer, args=(others, items, threads, a), daemon=True)
        self.process.start()
        others.close()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function of the task and the arguments returns there."""
        self.asked.send((function, arguments))
        return self.asked.recv()

    def close(self) -> None:
        self.asked.close()
        self.process.join()


def answer(asked: Any, items: int, threads: int, a: argparse.Namespace) -> None:
    """What goes on in that process, until nobody asks any more."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(a.threads)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(items, a, Path(folder))
        while True:
            try:
                function, arguments = asked.recv()
            except EOFError:
                return
            asked.send(function(task, *arguments))


def measure(processes: list[Apart], batch: int, calls: int) -> list[dict[str, np.ndarray]]:
    """Milliseconds of each call by name, of each process; a round calls each of them once, in one after the other."""
    found: list[dict[str, list[float]]] = [{} for _ in processes]
    for number in range(calls + 2):  # the first ones warm up
        for process, own in zip(processes, found, strict=True):
            for name, ms in process(timed, batch).items():
                if number >= 2:
                    own.setdefault(name, []).append(ms)
    return [{name: np.array(values) for name, values in own.items()} for own in found]


def of_parts(ms: dict[str, np.ndarray], percent: int) -> float:
    """The sum of the medians; of another percentile, that of the sums."""
    if percent == 50:
        return float(sum(np.median(ms[name]) for name in PARTS))
    return float(np.percentile(np.sum([ms[name] for name in PARTS], axis=0), percent))


def of_times(
    items: int, batch: int, alone: dict[str, np.ndarray], shared: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Rows of the calls in which an operation has a thread of its own, and in which all threads share it."""
    rows = []
    for percent, bar in ((50, BAR), (99, None)):
        parts = min(alone, shared, key=lambda ms: of_parts(ms, 50))
        rows.append(of_time(f"N = {items:,}, B = {batch}, p{percent} in ms", alone, parts, percent, bar))
    return [*rows, of_time(f"N = {items:,}, B = {batch}, p50, all threads an operation", shared, shared, 50, None)]


def of_time(
    case: str, ours: dict[str, np.ndarray], parts: dict[str, np.ndarray], percent: int, bar: float | None
) -> dict[str, Any]:
    own, peer = float(np.percentile(ours["ours"], percent)), of_parts(parts, percent)
    row = {"case": case, "ours": round(own, 2), "peer": round(peer, 2), "ratio": round(own / peer, 3)}
    apart = [f"retrieve {np.percentile(ours['retrieve'], percent):.2f}"]
    apart += [f"{name} {np.percentile(parts[name], percent):.2f}" for name in PARTS]
    return {**row, "bar": bar, "ok": bar is None or own / peer <= bar, "apart": ", ".join(apart)}


def peak() -> float:
    """MB, the most that was resident since this was last asked for; Linux begins anew with what is resident now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    Path("/proc/self/clear_refs").write_text("5")
    return int(status["VmHWM"].split()[0]) * 1024 / 1e6


def of_call(task: Task) -> dict[str, Any]:
    """What calls take for as long as they last: less than half a table of vectors, or one was copied."""
    request = task.request(1)
    for _ in range(3):
        task.servable.recommend(**request)
    peak()
    before = peak()
    for _ in range(10):
        task.servable.recommend(**request)
    taken, table = peak() - before, 4 * task.items * task.arguments.dim / 1e6
    case = f"N = {task.items:,}, B = 1: MB for as long as a call lasts"
    bar = MEMORY_BAR + table / 2
    row = {"case": case, "ours": round(taken, 1), "peer": round(table, 1), "ratio": None}
    return {**row, "bar": bar, "ok": taken <= bar, "apart": "peer: MB of one table of vectors"}


def memory(task: Task, requests: int) -> dict[str, Any]:
    """Every call asks something else."""
    asked = [task.request(1) for _ in range(100)]
    peak()  # that of what was made and timed before
    for request in asked:
        task.servable.recommend(**request)
    before = peak()
    for number in range(requests):
        task.servable.recommend(**asked[number % len(asked)])
    gained = peak() - before
    case = f"N = {task.items:,}, B = 1: MB that the peak of {requests:,} calls is above that of 100"
    row = {"case": case, "ours": round(gained, 1), "peer": round(before, 1), "ratio": None}
    return {**row, "bar": MEMORY_BAR, "ok": gained <= MEMORY_BAR, "apart": "peer: MB at that peak"}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = plain_parser(__doc__, QUICK)
    for name, values, text in (
        ("items", [10_000, 100_000, 1_000_000], "N, items of the catalogue"),
        ("batch", [1, 8, 64], "B, requests in a call"),
    ):
        parser.add_argument(f"--{name}", type=int, nargs="+", default=values, help=f"{text} ({values})")
    add_numbers(
        parser,
        ("dim", 64, "D, length of the vectors"),
        ("candidates", 200, "of each source"),
        ("calls", 100, "timed calls"),
        ("requests", 10_000, "calls over which memory is looked at"),
        ("threads", 2, "of TensorFlow, as many as there are cores"),
    )
    arguments = parsed(parser, argv, QUICK)
    for name in ("dim", "candidates", "calls", "requests", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1. Received: {getattr(arguments, name)}.")
    return arguments


def main(argv: list[str]) -> int:
    a = parse(argv)
    rows = []
    for items in a.items:
        processes = [Apart(items, threads, a) for threads in (1, a.threads)]
        for batch in a.batch:
            rows += of_times(items, batch, *measure(processes, batch, a.calls))
            print(f"{rows[-3]['case']}: {rows[-3]['ours']}, parts {rows[-3]['peer']}", file=sys.stderr)
        rows.append(processes[0](of_call))
        if items == min(a.items):
            last = processes[0](memory, a.requests)
        for process in processes:
            process.close()
    rows.append(last)
    text = f"{a.threads} threads. peer: the sum of the parts; bar: the most that the ratio, or ours in MB, may be."
    return ended(rows, text, ["apart: retrieve is ours without ranking"], a.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
