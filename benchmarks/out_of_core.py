"""Data larger than memory: Parquet → ExampleGen → Splitter → Transform → one epoch of a two-tower, at growing sizes.

The log is that of `_events.py`: power laws, sessions and drift, ordered by time. Every size runs in a process of its
own, through the shipped components and settings but for those of the two-tower that `SETTINGS` shows. A row a size says
how many rows a second the whole chain handles (ours) beside the smallest size (peer), one what memory it takes at most,
in GB (ours) beside what it may (peer). The steps, what they hold and what lies on the disk are told below the table;
those that only describe and check the data (StatisticsGen, SchemaGen, ExampleValidator) with them, but not in its rows.
Of the epoch itself, a row says what its input takes a batch (ours) when it runs alone, beside the step (peer), and one
what a step takes with that input beside it, and with batches that are ready: what the input takes of the cores.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import _events
import numpy as np
from _table import ended, parsed, peak, plain_parser, start_peak

BAR, MEMORY = 0.8, 8.0
QUICK = {"rows": [200_000, 400_000]}
SETTINGS: dict[str, Any] = {
    "embedding_dim": 32,
    "long_history_length": 30,
    "examples_per_user": 4,
    "batch_size": 1024,
    "epochs": 1,
}


def chain(rows: int, folder: Path) -> dict[str, Any]:
    """Runs the steps on a log of so many rows; by step seconds, GB held at most and GB written."""
    from shortlist.components._progress import quiet
    from shortlist.components.example_gen import DataConfig, ExampleGen
    from shortlist.components.example_validator import ExampleValidator
    from shortlist.components.pipeline import Pipeline
    from shortlist.components.schema_gen import SchemaGen
    from shortlist.components.splitter import Splitter
    from shortlist.components.statistics_gen import StatisticsGen
    from shortlist.components.trainer import Trainer
    from shortlist.components.transform import Transform
    from shortlist.trainers import two_tower

    source = {"source": f"parquet:{folder / 'events.parquet'}", "items": folder / "items.parquet"}
    p = Pipeline(folder / "run")
    examples = p.add(ExampleGen(DataConfig(**source)))
    splits = p.add(Splitter(), examples)
    encoded = p.add(Transform(), splits)
    p.add(Trainer(two_tower.Config(**SETTINGS), "two_tower", "shortlist.trainers.two_tower:train"), encoded)
    found: dict[str, Any] = {"rows": rows, "seconds": {}, "memory": {}, "disk": {}, "chain": list(p.steps)}
    p.add(ExampleValidator(), examples, p.add(SchemaGen(), p.add(StatisticsGen(), examples), examples))
    for step in p.steps:
        start_peak()
        started = time.perf_counter()
        with quiet():
            artifact = p.run(until=[step])[step]
        found["seconds"][step] = time.perf_counter() - started
        found["memory"][step] = peak()
        found["disk"][step] = sum(f.stat().st_size for f in artifact.uri.rglob("*") if f.is_file()) / 1e9
    found["waited"] = waited(p.run(until=["Transform"])["Transform"])
    return found


def waited(encoded: Any, steps: int = 60, rounds: int = 7) -> dict[str, float]:
    """Milliseconds, medians of rounds: of a step with its input beside it, of one whose batch is ready, and of the
    input alone; and the median ratio of the first two."""
    import tensorflow as tf

    from shortlist.trainers import two_tower
    from shortlist.trainers._common import load_stored, next_item_batches

    config = two_tower.Config(**{**SETTINGS, "epochs": 1000})
    data, rows = load_stored(config, {"encoded": encoded})
    examples = two_tower.make_examples(config, data, rows)
    model = two_tower.make_model(config, data, examples)
    step = tf.function(model.train_step, reduce_retracing=True)
    batches = iter(next_item_batches(examples, config, 0)[0])

    def per_step(batches: Any, run: Any) -> float:
        started = time.perf_counter()
        for batch in batches:
            run(batch)
        return 1e3 * (time.perf_counter() - started) / steps

    def one_round() -> tuple[float, float, float]:
        piped = per_step(itertools.islice(batches, steps), step)
        alone = per_step(itertools.islice(batches, steps), id)
        ready = list(itertools.islice(batches, steps))  # new ones, as the others are
        return piped, per_step(ready, step), alone

    one_round()
    times = np.array([one_round() for _ in range(rounds)])
    piped, plain, alone = np.median(times, axis=0).tolist()
    return {"piped": piped, "step": plain, "alone": alone, "ratio": float(np.median(times[:, 0] / times[:, 1]))}


def measure(rows: int, workdir: Path) -> dict[str, Any]:
    """`chain` in a process of its own, which has room for itself alone, and what it leaves is removed."""
    folder = Path(tempfile.mkdtemp(prefix=f"out_of_core_{rows}_", dir=workdir))
    try:
        started = time.perf_counter()
        _events.write(rows, folder)
        made = time.perf_counter() - started
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(rows), "--workdir", str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{rows:,} rows failed with exit code {done.returncode}.")
        found = json.loads(done.stdout.splitlines()[-1])
        return {**found, "made": made, "log": (folder / "events.parquet").stat().st_size / 1e9}
    finally:
        shutil.rmtree(folder)


def table(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rates = [one["rows"] / sum(one["seconds"][step] for step in one["chain"]) for one in found]
    rows: list[dict[str, Any]] = []
    for one, rate in zip(found, rates, strict=True):
        size, ratio = f"{one['rows']:,} rows", rate / rates[0]
        bar = BAR if one is not found[0] else None
        row = {"case": f"{size}: rows/s", "ours": round(rate), "peer": round(rates[0]), "ratio": round(ratio, 3)}
        rows.append({**row, "bar": bar, "ok": bar is None or ratio >= bar})
        memory = max(one["memory"][step] for step in one["chain"])
        row = {"case": f"{size}: GB held at most", "ours": round(memory, 2), "peer": MEMORY}
        rows.append({**row, "ratio": round(memory / MEMORY, 3), "bar": 1.0, "ok": memory < MEMORY})
        wait = one["waited"]
        row = {"case": f"{size}: ms of input alone, against the step", "ours": round(wait["alone"], 2)}
        row |= {"peer": round(wait["step"], 2), "ratio": round(wait["alone"] / wait["step"], 3)}
        rows.append({**row, "bar": 1.0, "ok": wait["alone"] < wait["step"]})
        row = {"case": f"{size}: ms a step, against one whose batch is ready", "ours": round(wait["piped"], 2)}
        row |= {"peer": round(wait["step"], 2), "ratio": round(wait["ratio"], 3)}
        rows.append({**row, "bar": None, "ok": True})
    return rows


def tell_steps(found: list[dict[str, Any]]) -> None:
    for one in found:
        print(f"\n{one['rows']:,} rows; the log: {one['log']:.2f} GB, written in {one['made']:.0f} s")
        for step, seconds in one["seconds"].items():
            rate = one["rows"] / seconds
            held, written = one["memory"][step], one["disk"][step]
            print(f"  {step:18}{seconds:8.1f} s {rate:12,.0f} rows/s {held:6.2f} GB held {written:6.2f} GB written")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = plain_parser(__doc__, QUICK)
    sizes = [10**6, 10**7, 10**8]
    parser.add_argument(
        "--rows", nargs="+", type=lambda x: int(float(x)), default=sizes, metavar="N", help=f"({sizes})"
    )
    parser.add_argument("--workdir", type=Path, default=None, help="has room for 100 bytes a row (the system's)")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    return parsed(parser, argv, QUICK)


def main(argv: list[str]) -> int:
    a = parse(argv)
    if a.one:
        print(json.dumps(chain(a.one, a.workdir)))
        return 0
    found: list[dict[str, Any]] = []
    for rows in a.rows:
        found.append(measure(rows, a.workdir))
        print(found[-1], file=sys.stderr)
    code = ended(table(found), f"{os.cpu_count()} CPUs; the two-tower: {SETTINGS}", file=a.json)
    tell_steps(found)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
