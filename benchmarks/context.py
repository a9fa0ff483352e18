"""What context is worth on DePaulMovie and South Tyrol Suggests: RMSE of every method, five folds, three fold seeds.

Settings are chosen by RMSE on inner folds alone, with the same number of trials for every method; see `shortlist
experiment context`. ours is the mean over folds and fold seeds, peer the better of two reference figures: a plain NumPy
program and CARSKit (k = 10, tuned), measured on the same sets. A row with a bar says that ours is not above the peer by
more than the half-width of the 95 % interval over fold seeds and folds; `best` is the best deviation of CAMF against
the best reference.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from _table import add_numbers, parsed, plain_parser, tell

from shortlist.components._config import parse
from shortlist.trainers.context_experiment import ContextExperiment, run_experiment

STS = (
    *("distance", "timeAvailable", "temperature", "crowdedness", "knowledgeOfSurroundings", "season", "budget"),
    *("daytime", "weather", "companion", "mood", "weekday", "travelGoal", "transport"),
)
SETS: dict[str, dict[str, Any]] = {
    "depaulmovie": {"file": "depaulmovie/ratings.txt"},
    "sts": {"file": "sts/Data_STS.csv", "contexts": STS},
}
PEERS: dict[str, dict[str, float]] = {
    "depaulmovie": {
        "biased_mf": 0.964,
        "camf_c": 0.934,
        "camf_ci": 0.947,
        "camf_cu": 0.903,
        "camf_cuci": 0.896,
        "item_splitting": 0.982,
        "user_splitting": 1.014,
        "best": 0.896,
    },
    "sts": {
        "biased_mf": 1.109,
        "camf_c": 1.108,
        "camf_cu": 1.103,
        "camf_cuci": 1.265,
        "user_splitting": 1.097,
        "best": 1.103,
    },
}
QUICK = {"data": ["depaulmovie"], "fold_seeds": [0], "trials": 3, "inner_folds": 2}


def rows_of(name: str, shared: Path, settings: dict[str, Any], workdir: Path) -> list[dict[str, Any]]:
    source = SETS[name]
    data = {"source": f"carskit:{shared / source['file']}", "contexts": source.get("contexts", ())}
    found = run_experiment(parse(ContextExperiment, {"data": data, **settings}), workdir / name)["methods"]
    folds = {method: np.array(own["rmse_by_fold"]) for method, own in found.items() if own["rmse_by_fold"]}
    best = min((m for m in folds if m.startswith("camf_")), key=lambda m: folds[m].mean())
    rows = []
    for method, values in {**folds, "best": folds[best]}.items():
        ours, peer = float(values.mean()), PEERS[name].get(method)
        half = 1.96 * float(values.std(ddof=1)) / values.size**0.5
        row = {"case": f"{name} {method}", "ours": ours, "peer": peer, "ratio": ours / peer if peer else None}
        bar = f"<= {peer:.3f} + {half:.3f}" if peer else None
        own = found[best if method == "best" else method]
        further = {"mae": own["mae"]["value"], "ndcg@10": own["ndcg@10"]["value"]}
        rows.append({**row, "bar": bar, "ok": peer is None or ours <= peer + half, **further})
    return rows


def arguments_of(argv: list[str]) -> argparse.Namespace:
    parser = plain_parser(__doc__, QUICK)
    parser.add_argument("--data", nargs="+", choices=SETS, default=list(SETS), help=f"({' '.join(SETS)})")
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--shared", type=Path, default=shared, metavar="DIR", help="holds depaulmovie/ and sts/")
    parser.add_argument("--workdir", type=Path, default=Path("runs/context"), help="(runs/context)")
    add_numbers(parser, ("trials", 12, "settings that a method tries"), ("inner-folds", 3, "to choose them"))
    parser.add_argument("--fold-seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    return parsed(parser, argv, QUICK)


def main(argv: list[str]) -> int:
    a = arguments_of(argv)
    settings = {name: getattr(a, name) for name in ("fold_seeds", "trials", "inner_folds")}
    text = f"ours: RMSE, peer: the reference; {a.trials} trials each, fold seeds {a.fold_seeds}."
    return tell(a, lambda name, a: rows_of(name, a.shared, settings, a.workdir), text, ("mae", "ndcg@10"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
