"""How well WALS ranks for users it never saw, beside implicit, irspack, EASE and popularity (strong generalization).

Held-out users are drawn whole (the splitter's `strong`): models are fitted on the others, get the first 80 % of a
held-out user's events as history, and rank the whole catalogue but for that. Each system is tuned by random search on
NDCG@100 of the users of `validation`, with as many trials, the factorizations at the same D and number of epochs; the
best is then measured once on the users of `test`.

ours and peer are means over the users of `test`; the difference is paired, with its 95 % bootstrap interval. The bar,
for implicit alone, is the lowest ratio whose interval still reaches 1.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as implicit asks for

import numpy as np
from _retrieval import encoded, figures
from _table import add_numbers, parsed, parser_of, tell

from shortlist.components._queries import build_queries
from shortlist.components.metrics import bootstrap_mean, paired_bootstrap
from shortlist.trainers._common import interaction_matrix

CUTOFFS, METRICS = (20, 50, 100), ("recall@20", "recall@50", "ndcg@100")
HELD_OUT = 0.2  # of the users, for validation and for test each
QUICK = {"trials": 3, "dim": 32, "epochs": 5}

Scorer = Callable[[dict[str, Any]], Any]
Range = tuple[float, float]


class Task:
    """The data, and each system as a function from settings to one that scores queries."""

    def __init__(self, a: argparse.Namespace, source: str):
        from scipy.sparse import csr_matrix

        split = {"strategy": "strong", "test": HELD_OUT, "validation": HELD_OUT, "rank_train": 0.0, "seed": a.seed}
        data = encoded(source, a.archive_dir, a.workdir, **{f"split.{name}": value for name, value in split.items()})
        self.dim, self.epochs, self.seed, self.items = a.dim, a.epochs, a.seed, data.num_items
        self.x = interaction_matrix(data.rows("train"), data.num_users, data.num_items)
        indices = np.asarray(self.x.indices)
        self.matrix = csr_matrix((np.ones(len(indices), np.float32), indices.T), self.x.shape)
        self.queries = {name: build_queries(data, name) for name in ("validation", "test")}

    def ours(self, w0: float, l2: float, nu: float) -> Scorer:
        from shortlist.models.wals import WALS

        model = WALS(self.dim, w0, l2, nu, seed=self.seed)
        model.fit(self.x, epochs=self.epochs, verbose=0)
        return model.score_items

    def implicit(self, alpha: float, l2: float) -> Scorer:
        from implicit.cpu.als import AlternatingLeastSquares

        options = {"regularization": l2, "alpha": alpha, "iterations": self.epochs, "random_state": self.seed}
        model = AlternatingLeastSquares(self.dim, **options)
        model.fit(self.matrix, show_progress=False)

        def score(query: dict[str, Any]) -> np.ndarray:
            history = self._histories(query)
            return model.recalculate_user(np.arange(history.shape[0]), history) @ model.item_factors.T

        return score

    def irspack(self, alpha: float, l2: float, nu: float) -> Scorer:
        from irspack.recommenders.ials import IALSRecommender

        options = {"n_components": self.dim, "train_epochs": self.epochs, "random_seed": self.seed}
        model = IALSRecommender(self.matrix, alpha0=alpha, reg=l2, nu=nu, **options).learn()
        return lambda query: model.get_score_cold_user(self._histories(query)).astype(np.float32)

    def ease(self, l2: float) -> Scorer:
        from shortlist.models.ease import EASE

        model = EASE(self.items, l2=l2, neighbours=None)
        model.fit(self.x)
        return model.score_items

    def popularity(self) -> Scorer:
        counts = np.asarray(self.matrix.sum(axis=0))  # [1, I]
        return lambda query: np.repeat(counts, len(query["history"]), axis=0)

    def _histories(self, query: dict[str, Any]) -> Any:
        from scipy.sparse import csr_matrix

        history = np.asarray(query["history"])  # [B, L]
        row, place = np.nonzero(history >= 2)
        cells = np.unique(np.stack([row, history[row, place]]), axis=1)
        return csr_matrix((np.ones(cells.shape[1], np.float32), cells), (len(history), self.items))


# What is searched, by system: log-uniform between two numbers, or one of a list. A repeated range is the same quantity.
L2: Range = (1e-3, 1e-1)
SPACES: dict[str, dict[str, Range | list[float]]] = {
    "ours": {"w0": (0.01, 1.0), "l2": L2, "nu": [0.5, 0.75, 1.0]},
    "implicit": {"alpha": (1.0, 100.0), "l2": (0.1, 300.0)},
    "irspack": {"alpha": (0.01, 1.0), "l2": L2, "nu": [0.5, 0.75, 1.0]},
    "ease": {"l2": (10.0, 2000.0)},
    "popularity": {},
}


def drawn(space: dict[str, Range | list[float]], rng: np.random.Generator) -> dict[str, float]:
    found = {}
    for name, among in space.items():
        value = rng.choice(among) if isinstance(among, list) else np.exp(rng.uniform(*np.log(among)))
        found[name] = float(value)
    return found


def tuned(task: Task, name: str, trials: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The metrics on `test` of the settings that are best on `validation`, and these."""
    rng, best, chosen, found = np.random.default_rng(0), -1.0, None, {}
    for _ in range(trials if SPACES[name] else 1):
        settings = drawn(SPACES[name], rng)
        score = getattr(task, name)(**settings)
        value = float(np.nanmean(figures(score, task.queries["validation"], CUTOFFS, name)[METRICS[-1]]))
        if value > best:
            best, chosen, found = value, score, settings
    assert chosen is not None
    return figures(chosen, task.queries["test"], CUTOFFS, name), found


def compared(source: str, a: argparse.Namespace) -> list[dict[str, Any]]:
    task = Task(a, source)
    results = {name: tuned(task, name, a.trials) for name in SPACES}
    rows = []
    for metric in METRICS:
        ours = results["ours"][0][metric]
        mean, low, high = bootstrap_mean(ours)
        for name, (values, settings) in results.items():
            if name == "ours":
                continue
            peer, peer_low, peer_high = bootstrap_mean(values[metric])
            difference, worst, most = paired_bootstrap(ours, values[metric])
            bar = round(1 - (most - difference) / peer, 4) if name == "implicit" else None
            rows.append(
                {
                    "case": f"{source.removeprefix('tfds:')}, {metric}, {name}",
                    "ours": round(mean, 4),
                    "peer": round(peer, 4),
                    "ratio": round(mean / peer, 4),
                    "bar": bar,
                    "ok": bar is None or most >= 0,
                    "of ours": f"[{low:.3f}, {high:.3f}]",
                    "of peer": f"[{peer_low:.3f}, {peer_high:.3f}]",
                    "difference": f"{difference:+.4f} [{worst:+.4f}, {most:+.4f}]",
                    "settings of peer": ", ".join(f"{key} {value:.3g}" for key, value in settings.items()),
                }
            )
    print(f"ours, {source}: {results['ours'][1]}", file=sys.stderr)
    return rows


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, QUICK, ["demo"], "runs/wals_quality")
    add_numbers(
        parser,
        ("trials", 30, "of each system"),
        ("dim", 64, "D of the factorizations"),
        ("epochs", 12, "of the factorizations"),
        ("seed", 0, "draws the held-out users and the starts"),
    )
    a = parsed(parser, argv, QUICK)
    if min(a.trials, a.dim, a.epochs) < 1 or a.seed < 0:
        parser.error("--trials, --dim and --epochs must be at least 1, --seed at least 0.")
    return a


def main(argv: list[str]) -> int:
    a = parse(argv)
    warnings.filterwarnings("ignore", module="implicit")
    text = f"Users never seen, D = {a.dim}, {a.trials} trials each. ratio = ours / peer must be at least the bar."
    return tell(a, compared, text, ["of ours", "of peer", "difference", "settings of peer"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
