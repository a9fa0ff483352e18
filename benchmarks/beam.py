"""ExampleGen, StatisticsGen and Transform by Apache Beam beside the local engine: time, memory, and the same artifacts.

Each engine runs in a process of its own on the same generated log (`_events.py`), ten million rows by default. Beam's
runner is the direct one with two worker processes. `ours` is Beam, `peer` the local engine. Memory is the peak during a
step, of the process that asks, which puts together what workers make, and of the largest worker. The Splitter, which
runs in that process by either engine, is not in the table.
"""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from _events import write
from _table import ended, parsed, peak, plain_parser, start_peak, write_rows

QUICK: dict[str, Any] = {"rows": [100_000]}
FLAGS = ("direct_running_mode=multi_processing", "direct_num_workers=2")
STEPS = ("ExampleGen", "StatisticsGen", "Splitter", "Transform")
BY_BEAM = ("ExampleGen", "StatisticsGen", "Transform")
BAR = 2.0  # GB that no process of Beam's may exceed, whatever the rows


def one(engine: str, source: str, workdir: Path) -> None:
    """Runs the steps and prints, by step, what they took."""
    from shortlist.components._engine import EngineConfig, engine_of
    from shortlist.components.example_gen import DataConfig, ExampleGen
    from shortlist.components.pipeline import Pipeline
    from shortlist.components.splitter import Splitter
    from shortlist.components.statistics_gen import StatisticsGen
    from shortlist.components.transform import Transform

    config = EngineConfig(name="beam", beam=FLAGS) if engine == "beam" else EngineConfig()
    p = Pipeline(workdir, engine=engine_of(config))
    examples = p.add(ExampleGen(DataConfig(source=source)))
    p.add(StatisticsGen(), examples)
    p.add(Transform(), p.add(Splitter(), examples))
    workers: dict[int, float] = {}
    threading.Thread(target=watch_workers, args=(workers,), daemon=True).start()
    found: dict[str, dict[str, Any]] = {"seconds": {}, "folders": {}, "process": {}, "worker": {}}
    for step in STEPS:
        start_peak()
        workers.clear()
        done = p.run(until=[step])[step]
        found["seconds"][step], found["folders"][step] = done.lineage["seconds"], str(done.uri)
        found["process"][step], found["worker"][step] = peak(), max(workers.values(), default=0.0)
    print(json.dumps(found))


def watch_workers(peaks: dict[int, float]) -> None:
    """Keeps the most GB that each worker of Beam's below this process held."""
    while True:
        time.sleep(0.1)
        parents, found = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if b"sdk_worker_main" in (folder / "cmdline").read_bytes():
                    found[int(folder.name)] = peak(folder)
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue  # it has ended
        for process, gigabytes in found.items():
            above = process
            while above in parents and above != os.getpid():
                above = parents[above]
            if above == os.getpid():
                peaks[process] = gigabytes


def measured(engine: str, source: Path, workdir: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", engine, f"parquet:{source}", str(workdir / engine)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The engine {engine} failed on {source}.")
    return json.loads(done.stdout.splitlines()[-1])


def same(one: Path, other: Path) -> bool:
    """Whether two artifacts hold the same but for their lineage; of Parquet, the same values in the same order."""
    names = [{p.name for p in folder.iterdir() if p.name != "lineage.json"} for folder in (one, other)]
    return names[0] == names[1] and all(_same_file(one / name, other / name) for name in names[0])


def _same_file(one: Path, other: Path) -> bool:
    import pyarrow.parquet as pq

    if one.suffix != ".parquet":
        return one.read_bytes() == other.read_bytes()
    with pq.ParquetFile(one) as a, pq.ParquetFile(other) as b:
        pairs = itertools.zip_longest(a.iter_batches(2**18), b.iter_batches(2**18))
        return a.schema_arrow == b.schema_arrow and all(
            x is not None and y is not None and all(map(_same_column, x.columns, y.columns)) for x, y in pairs
        )


def _same_column(a: Any, b: Any) -> bool:
    """Bits of floating numbers, since a NaN is what it is."""
    import pyarrow as pa

    if not pa.types.is_floating(a.type):
        return a.equals(b)
    bits = [x.fill_null(0).to_numpy().tobytes() for x in (a, b)]
    return bits[0] == bits[1] and a.is_null().equals(b.is_null())


def rows_of(number: int, a: Any) -> list[dict[str, Any]]:
    """The rows of the table for a log of so many rows."""
    folder = a.workdir / f"{number}"
    source = folder / "events.parquet"
    if not source.exists():
        write(number, folder)
    runs = {engine: measured(engine, source, folder) for engine in ("local", "beam")}
    found = []
    for step in BY_BEAM:
        equal = same(*(Path(runs[engine]["folders"][step]) for engine in ("beam", "local")))
        found.append(row(f"{number:,} rows, {step}: seconds", runs, "seconds", step, None, equal))
        found.append(row(f"{number:,} rows, {step}: main process, GB", runs, "process", step, BAR))
        found.append(row(f"{number:,} rows, {step}: largest worker, GB", runs, "worker", step, BAR))
    return found


def row(case: str, runs: Any, what: str, step: str, bar: float | None, ok: bool = True) -> dict[str, Any]:
    """One of the table: `what` was measured of a step."""
    ours, peer = (runs[engine][what][step] or None for engine in ("beam", "local"))
    ratio = ours / peer if peer else None
    return {"case": case, "ours": ours, "peer": peer, "ratio": ratio, "bar": bar, "ok": ok and ours <= (bar or ours)}


def main(argv: list[str]) -> int:
    if argv[:1] == ["--one"]:
        one(argv[1], argv[2], Path(argv[3]))
        return 0
    parser = plain_parser(__doc__, QUICK)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000], help="sizes of the log")
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark-beam"), help="(runs/benchmark-beam)")
    a = parsed(parser, argv, QUICK)
    rows: list[dict[str, Any]] = []
    for number in a.rows:
        rows += rows_of(number, a)
        if a.json:
            write_rows(a.json, rows)
    return ended(
        rows, "Beam's direct runner, two worker processes, beside the local engine. `ok` of a step: equal artifacts."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
