"""What the ranker's depth and inputs are worth: the paper's ladder of hidden layers, and features left out.

Every variant is a ranker on the same candidates, in the shipped pipeline but for what its name says. On MovieLens the
figure is NDCG@10 on `test`; on simulated impressions the weighted per-user loss of the paper's table 1, the share of a
user's watch time that the order of what was shown mispredicts (lower is better). A user's figure is the mean of those
of the seeds, and differences are paired by user.

ours is the variant, peer the shipped ranker. The ladder is the paper's, without cross layers. The two rows with a bar
say that the shipped ranker is better than the linear one (`depth 0`), and on impressions better than one without
weights: their ratio must be at most 1 (NDCG) or at least 1 (loss). The others only inform.

Source: Covington, Adams and Sargin 2016, table 1 and section 4.2.
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

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from _table import parsed, parser_of, print_table, write_rows

from shortlist import ShortlistError
from shortlist.components._progress import quiet
from shortlist.components.evaluator import TWO_STAGE
from shortlist.components.metrics import bootstrap_means
from shortlist.models.weighted_logistic import LADDER
from shortlist.trainers.two_stage import load_config, two_stage

SHIPPED = "shipped"
VARIANTS: dict[str, dict[str, Any]] = {
    SHIPPED: {},
    **{f"depth {name}": {"hidden_units": name, "cross_layers": 0} for name in LADDER},
    "cross layer alone": {"hidden_units": "0"},
    "no cross layer": {"cross_layers": 0},
    "item embeddings": {"embedding_dim": 16},
    "no squares and roots": {"use_powers": False},
    "no history": {"without": ["example_age", "history"]},
    "no retriever score": {"without": ["example_age", "retriever"]},
    "no content": {"without": ["example_age", "content"]},
    "with example age": {"without": []},
    "unit weights": {"weighted": False},
}
QUICK = {
    "data": ["simulated:users=200,items=100,impressions=30000"],
    "seeds": [0],
    "variants": [SHIPPED, "depth 0", "no history"],  # for the weights 30,000 impressions are too few
}
SIMULATED = {"split.strategy": "global_time", "sources": {"ease": {}}, "shortlist.size": 100, "shortlist.quota": 100}


def of_users(source: str, archive: Path | None, changes: dict[str, Any], seeds: list[int], folder: Path) -> np.ndarray:
    """The figure of every user, mean over the seeds; NaN for a user without one."""
    given = {"data.source": source, "workdir": str(folder), "baselines": {}, "evaluation.cutoffs": [10]}
    given |= {"data.archive_dir": str(archive)} if archive else {}
    given |= SIMULATED if is_simulated(source) else {}
    metric = "shown_weighted_user_loss" if is_simulated(source) else "ndcg@10"
    found = []
    for seed in seeds:
        ranker = {f"ranker.{name}": value for name, value in changes.items()}
        with quiet():
            done = two_stage(load_config(None, {**given, **ranker, "ranker.seed": seed})).run(until=["Evaluator"])
        table = pq.read_table(done["Evaluator"] / "per_user.parquet")
        found.append(table.filter(pc.equal(table["system"], TWO_STAGE)).sort_by("user")[metric].to_numpy())
    return np.mean(found, axis=0)


def is_simulated(source: str) -> bool:
    return source.startswith("simulated")


def row(source: str, name: str, ours: np.ndarray, peer: np.ndarray) -> dict[str, Any]:
    difference, low, high = (float(v[0]) for v in bootstrap_means((ours - peer)[:, np.newaxis], 2000, 0))
    ratio = float(np.nanmean(ours) / np.nanmean(peer))
    barred = name == "depth 0" or (name == "unit weights" and is_simulated(source))
    good = ratio >= 1 if is_simulated(source) else ratio <= 1
    return {
        "case": f"{source.removeprefix('tfds:').partition(':')[0]}, {name}",
        "ours": round(float(np.nanmean(ours)), 4),
        "peer": round(float(np.nanmean(peer)), 4),
        "ratio": round(ratio, 4),
        "bar": 1.0 if barred else None,
        "ok": good or not barred,
        "difference": f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]",
        "users": int((~np.isnan(ours)).sum()),
    }


def show(rows: list[dict[str, Any]]) -> None:
    print("\nours: the variant, peer: the shipped ranker; difference: paired, with its 95 % interval over users.")
    print("NDCG@10 on test; for simulated impressions the weighted per-user loss, where lower is better.\n")
    print_table(rows, ["difference", "users"])


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, QUICK, ["demo", "simulated:impressions=1000000"], "runs/ranking_ladder")
    names = list(VARIANTS)
    parser.add_argument("--variants", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the ranker (0 1 2)")
    return parsed(parser, argv, QUICK)


def main(argv: list[str]) -> int:
    a = parse(argv)
    rows = []
    try:
        for source in a.data:
            archive = a.archive_dir if source.startswith("tfds:") else None
            where = a.workdir / re.sub(r"[^A-Za-z0-9._]+", "-", source.removeprefix("tfds:"))
            peer = of_users(source, archive, VARIANTS[SHIPPED], a.seeds, where)
            for name in a.variants:
                rows.append(row(source, name, of_users(source, archive, VARIANTS[name], a.seeds, where), peer))
                print(rows[-1], file=sys.stderr)
    except ShortlistError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if a.json:
        write_rows(a.json, rows)
    show(rows)
    return 0 if all(r["ok"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
