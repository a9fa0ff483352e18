"""Approximate search for the largest dot products, against the exact one of this project: recall, time and memory.

The vectors are those that WALS learns of `--data`, smoothed to as many items as wanted: v_a + 0.3 (v_b − v_c) of three
items drawn at random. The queries are those of its users. Both searches answer the same queries in this process, in
turn, on the same number of threads; the table has the median milliseconds a query and the median ratio of ours to the
exact one of the same round.
The bar is HNSW's recall@100. Memory is that of the index, beside that of the vectors, which the exact search needs and
hnsw has inside. With --keep the vectors and the indexes stay in a folder, and a second call there only searches.
"""

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.pop("OPENBLAS_CORETYPE", None)  # a wrong one makes NumPy's products slow; it is read at the first import
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from _table import print_table, write_rows

from shortlist.components._ann import Approximate, IndexConfig
from shortlist.components._top_k import top_k

FIRST = 2  # rows 0 and 1 of a table of items are reserved
BAR = 0.98
QUICK = {"items": 20_000, "queries": 200, "rounds": 5}


def made(source: str, items: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of items, the reserved rows included, and of queries."""
    import tensorflow as tf

    from shortlist.components._queries import EncodedData, build_queries
    from shortlist.trainers.two_stage import load_config, retrieval_only

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(overrides={"data.source": source, "workdir": folder, "baselines": {}})
        done = retrieval_only(config).run(until=["Trainer.wals"])
        model = tf.keras.models.load_model(str(done["Trainer.wals"] / "model.keras"))
        asked = build_queries(EncodedData(done["Transform"]), "validation")
        parts = [{n: v for n, v in batch.items() if n != "exclude"} for _, batch in asked.batches(100)]
    found = np.concatenate([model.embed_query(part).numpy() for part in parts])[:queries]
    learned = model.item_vectors().numpy()[FIRST:]
    one, other, third = np.random.default_rng(0).integers(0, len(learned), (3, items))
    vectors = np.zeros((items + FIRST, learned.shape[1]), np.float32)
    vectors[FIRST:] = learned[one] + 0.3 * (learned[other] - learned[third])
    return vectors, found


def kept(a: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """`made`, or what it made before in the folder of --keep."""
    file = a.keep / "vectors.npz" if a.keep else None
    if file is not None and file.exists():
        loaded = np.load(file)
        if (len(loaded["vectors"]), str(loaded["source"])) != (a.items + FIRST, a.data):
            raise SystemExit(f"--keep {a.keep} holds vectors of other --items or --data. Take another folder.")
        return loaded["vectors"], loaded["queries"][: a.queries]
    vectors, queries = made(a.data, a.items, a.queries)
    if file is not None:
        a.keep.mkdir(parents=True, exist_ok=True)
        np.savez(file, vectors=vectors, queries=queries, source=a.data)
    return vectors, queries


def built(config: IndexConfig, vectors: np.ndarray, keep: Path | None) -> tuple[Approximate, float | None]:
    """An index and the seconds that it took, None for one that was kept."""
    settings = hashlib.sha256(config.model_copy(update={"breadth": 1}).model_dump_json().encode()).hexdigest()
    file = keep / f"{config.kind}-{settings[:12]}.faiss" if keep else None
    if file is not None and file.exists():
        return Approximate.load(file, vectors, config), None
    started = time.perf_counter()
    index = Approximate(vectors, config)
    seconds = time.perf_counter() - started
    if file is not None:
        index.save(file)
    return index, seconds


def measured(name: str, config: IndexConfig, vectors: np.ndarray, queries: np.ndarray, a: argparse.Namespace) -> Any:
    """The rows of one kind of index."""
    k, rounds = a.k, a.rounds
    index, building = built(config, vectors, a.keep)
    nothing = np.zeros(len(queries) + 1, np.int64), np.zeros(0, np.int32)
    exact = top_k(queries, vectors, k, *nothing)
    found, _ = index.search(queries, k)
    ours, peer = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        index.search(queries, k)
        between = time.perf_counter()
        top_k(queries, vectors, k, *nothing)
        ours.append(1000 * (between - started) / len(queries))
        peer.append(1000 * (time.perf_counter() - between) / len(queries))
    keys = [np.arange(len(queries), dtype=np.int64)[:, np.newaxis] * len(vectors) + rows for rows in (exact, found)]
    recall = float(np.isin(*keys).mean())
    ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
    bar = BAR if config.kind == "hnsw" else None
    where = f"{name}, {len(vectors) - FIRST:,} items of {vectors.shape[1]}"
    return [
        row(f"recall@{k}, {where}", recall, 1.0, recall, bar, bar is None or recall >= BAR),
        row(f"ms a query, {where}", statistics.median(ours), statistics.median(peer), ratio, None, True),
        row(f"MB of the index, {where}", index.megabytes(), vectors.nbytes / 2**20, None, None, True),
        *([] if building is None else [row(f"seconds to build, {where}", building, None, None, None, True)]),
    ]


def row(case: str, ours: float, peer: float | None, ratio: float | None, bar: float | None, ok: bool) -> dict[str, Any]:
    return {"case": case, "ours": ours, "peer": peer, "ratio": ratio, "bar": bar, "ok": ok}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--breadth", type=int, default=IndexConfig().breadth, help="of hnsw's search")
    parser.add_argument("--construction", type=int, default=IndexConfig().construction, help="of hnsw's building")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where vectors and indexes stay for another call")
    parser.add_argument("--quick", action="store_true", help="few items, within a minute")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(QUICK)
    vectors, queries = kept(arguments)
    rows: list[dict[str, Any]] = []
    kinds = {
        f"hnsw of breadth {arguments.breadth}": IndexConfig(
            kind="hnsw", breadth=arguments.breadth, construction=arguments.construction
        ),
        "ivf_pq": IndexConfig(kind="ivf_pq"),
    }
    for name, config in kinds.items():
        rows += measured(name, config, vectors, queries, arguments)
    print_table(rows, [])
    print(f"Peer: the exact search, and the vectors themselves. {os.cpu_count()} cores.")
    if arguments.json:
        write_rows(arguments.json, rows)
    if not all(row["ok"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
