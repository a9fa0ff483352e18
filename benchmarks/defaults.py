"""The shipped settings against tuned ones, on `test`: a sweep on `validation` for each model and data set.

The sweep is that of `shortlist tune`, the shipped settings its first trial. Then the shipped settings and the best
found (`best.toml`) are measured once on `test`, in the same pipeline, and compared user by user in NDCG@10. A sweep
that is in its folder is gone on with, so this program may be stopped and started again.

ours is the tuned figure, peer the shipped one's, ratio = ours / peer. The bar is the lowest ratio whose 95 % interval
still reaches 1, so a row that fails says that tuning on `validation` made `test` worse, beyond chance.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from _table import parsed, parser_of, print_table, write_rows

from shortlist import ShortlistError
from shortlist.components._trials import best_trial
from shortlist.components.artifacts import Artifact
from shortlist.components.compare import compare
from shortlist.components.evaluator import TWO_STAGE
from shortlist.trainers._sweep import BEST, Sweep, SweepConfig
from shortlist.trainers.tuning import tune
from shortlist.trainers.two_stage import (
    RANKER,
    alone,
    load_config,
    model_names,
    place_of,
    read_toml,
    retrieval_only,
    two_stage,
)

METRIC = "ndcg@10"
QUICK = {"models": ["item_knn"], "trials": 3}
NEED_MORE = (
    "camf",
    "post_filter",
    "table",
)  # contexts, or a file, which MovieLens does not have: not swept unless they are named


def sweep_of(target: str, data: dict[str, Any], trials: int, folder: Path) -> Sweep:
    print(f"{target}, {data['data.source']} → {folder}", file=sys.stderr)
    return tune(SweepConfig(target=target, trials=trials, objective=METRIC, given=data), folder, resume=True)


def on_test(target: str, data: dict[str, Any], found: dict[str, Any], folder: Path) -> Artifact:
    """The evaluation of a target, alone but for what it needs, with the settings `found` in place of the shipped."""
    measured = {"evaluation.split": "test", "evaluation.cutoffs": [10], "baselines": {}, "workdir": str(folder)}
    if target == TWO_STAGE:
        config = load_config(found, {**data, **measured})
    else:
        own = {place_of(target) + name: value for name, value in found.items()}
        config = load_config(None, {**alone(target), **data, **measured, **own})
    build = two_stage if target in (RANKER, TWO_STAGE) else retrieval_only
    return build(config).run(until=["Evaluator"])["Evaluator"]


def row(sweep: Sweep, default: Artifact, tuned: Artifact) -> dict[str, Any]:
    target, source = sweep.config.target, sweep.config.given["data.source"]
    system = TWO_STAGE if target == RANKER else target
    ours, peer = (e.read_json("metrics.json")["systems"][system][METRIC]["value"] for e in (tuned, default))
    pairs = [(f"tuned/{system}", f"default/{system}")]
    (paired,) = compare({"tuned": tuned.uri, "default": default.uri}, pairs, [METRIC])["differences"]
    records = sweep.records()
    best = {stage.name: best_trial([r for r in records if r.stage == stage.name]) for stage in sweep.stages}
    trials = ", ".join(f"{name} {record.trial}".strip() for name, record in best.items() if record)
    bar = 1 - (paired["high"] - paired["difference"]) / peer
    return {
        "case": f"{target} {source.removeprefix('tfds:')}",
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "ratio": round(ours / peer, 4),
        "bar": round(bar, 4),
        "ok": ours / peer >= bar,
        "difference": f"{paired['difference']:+.4f} [{paired['low']:+.4f}, {paired['high']:+.4f}]",
        "best": "the shipped setting" if tuned.fingerprint == default.fingerprint else trials,
        "trials": len(records),
        "seconds": round(sum(r.seconds for r in records)),
    }


def show(rows: list[dict[str, Any]]) -> None:
    print(f"\n{METRIC} on test. ours: tuned, peer: the shipped setting. ratio = ours / peer must be at least the bar.")
    print("difference: paired, with its 95 % interval over users; best: the trial of the sweep; seconds: of all.\n")
    print_table(rows, ["difference", "best", "trials", "seconds"])


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, QUICK, ["demo"], "runs/defaults")
    targets = [*model_names(), TWO_STAGE]
    usual = [name for name in targets if name not in NEED_MORE]
    parser.add_argument("--models", nargs="+", choices=targets, default=usual, metavar="MODEL", help=f"of {targets}")
    parser.add_argument("--trials", type=int, default=20, help="of each sweep, and of each stage of two_stage (20)")
    arguments = parsed(parser, argv, QUICK)
    if arguments.trials < 1:
        parser.error(f"--trials must be at least 1. Received: {arguments.trials}.")
    return arguments


def main(argv: list[str]) -> int:
    a = parse(argv)
    rows = []
    try:
        for source in a.data:
            data = {"data.source": source} | ({"data.archive_dir": str(a.archive_dir)} if a.archive_dir else {})
            name = re.sub(r"[^A-Za-z0-9._]+", "-", source.removeprefix("tfds:"))
            for target in a.models:
                sweep = sweep_of(target, data, a.trials, a.workdir / f"{target}-{name}")
                found = read_toml(sweep.workdir / BEST)
                default, tuned = (on_test(target, data, f, a.workdir / f"test-{name}") for f in ({}, found))
                rows.append(row(sweep, default, tuned))
                print(rows[-1], file=sys.stderr)
                if a.json:
                    write_rows(a.json, rows)
    except ShortlistError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    show(rows)
    return 0 if all(r["ok"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
