"""What the choice of negatives decides: every loss of the two-tower, with and without logQ.

Each variant is the shipped two-tower but for its loss. The figure is Recall@100 over the full catalogue on `test`, a
user's the mean over the seeds, and differences are paired by user. ours is the variant, peer the shipped setting. A
row's bar says that the variant is not better beyond chance: its interval must reach 0 or less. One more row says that
the shipped setting's Recall@100 holds against WALS: there the interval must reach 0 or more. And one says that what was
watched, as the only input, is better than the user's id as the only input, for the half of the users with the fewest
rows in training: there the interval must lie above 0.

`blocks` is planted: users of 8 groups watch items of their own group only, and the model has 2 dimensions. The figure
is the share of a user's best 10 items that come from other groups, which a random order has at 7/8. Without negatives
nothing keeps the groups apart, and they fold onto each other; with them the share must be at most .1.

The figures of every model are kept in --workdir, so that a run that was stopped goes on where it was. After a change of
the code give it another folder.

Source: Covington, Adams and Sargin 2016, §3; Yi et al. 2019; Yang et al. 2020.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from _retrieval import FURTHER, encoded, figures, fit, fitted, kept, mean_over, paired_row, settings
from _table import parsed, parser_of, tell

# TensorFlow comes after `_retrieval`, which chooses Keras 2.
import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip

from shortlist.components._examples import NextItemExamples
from shortlist.components._queries import EncodedData, Queries, build_queries
from shortlist.models.two_tower import TwoTower
from shortlist.models.wals import WALS
from shortlist.trainers._common import interaction_matrix
from shortlist.trainers.two_stage import defaults

SHIPPED = "shipped"
VARIANTS: dict[str, dict[str, Any]] = {
    "in_batch": {"softmax": "in_batch"},
    "in_batch, streaming logQ": {"softmax": "in_batch", "log_q": "streaming"},
    "in_batch, no logQ": {"softmax": "in_batch", "log_q": "none"},
    "mixed": {"softmax": "mixed"},
    "mixed, streaming logQ": {"softmax": "mixed", "log_q": "streaming"},
    "mixed, no logQ": {"softmax": "mixed", "log_q": "none"},
    "hard": {"softmax": "hard"},
    "hard, no logQ": {"softmax": "hard", "log_q": "none"},
    "uniform": {"softmax": "uniform", "negatives": 1024},
    "popularity": {"softmax": "popularity", "negatives": 1024},
    "popularity, no logQ": {"softmax": "popularity", "negatives": 1024, "log_q": "none"},
    "full": {"softmax": "full"},
    "positives_only": {"softmax": "positives_only"},
}
QUICK = {"data": ["blocks"], "variants": ["in_batch", "mixed", "uniform", "positives_only"], "seeds": [0]}
BLOCKS, ITEMS, USERS = 8, 25, 60  # items and users of each block
MOST_FOREIGN = 0.1


def wals(data: EncodedData, seed: int) -> WALS:
    shipped = defaults("wals")
    model = WALS(**{name: value for name, value in shipped.items() if name != "epochs"}, seed=seed)
    cells = interaction_matrix(data.rows("train"), data.num_users, data.num_items)
    model.fit(cells, epochs=shipped["epochs"], verbose=0)
    return model


def on_data(source: str, a: argparse.Namespace) -> list[dict[str, Any]]:
    data = encoded(source, a.archive_dir, a.workdir)
    queries = build_queries(data, a.split)
    name = source.removeprefix("tfds:").partition(":")[0]
    folder = a.workdir / "figures" / f"{name.replace('/', '-')}-{a.split}"

    def over_seeds(case: str, score_of: Callable[[int], Any]) -> dict[str, np.ndarray]:
        def of_seed(seed: int) -> dict[str, np.ndarray]:
            return kept(folder / f"{case}-{seed}.npz", lambda: figures(score_of(seed), queries))

        return mean_over([of_seed(seed) for seed in a.seeds])

    def of(case: str, changes: dict[str, Any]) -> dict[str, np.ndarray]:
        return over_seeds(case, lambda seed: fitted(settings(**changes, seed=seed), data).score_items)

    shipped = of(SHIPPED, {})
    peer = over_seeds("wals", lambda seed: wals(data, seed).score_items)
    rows = [paired_row(f"{name}, {SHIPPED} against wals", shipped, peer, "reaches")]
    print(rows[-1], file=sys.stderr)
    rows.append(history_row(name, data, queries, over_seeds))
    print(rows[-1], file=sys.stderr)
    for variant in a.variants:
        same = all(getattr(settings(), key) == value for key, value in VARIANTS[variant].items())
        found = shipped if same else of(variant, VARIANTS[variant])
        rows.append(paired_row(f"{name}, {variant}", found, shipped, "not above"))
        print(rows[-1], file=sys.stderr)
    return rows


def history_row(name: str, data: EncodedData, queries: Queries, over_seeds: Callable[..., Any]) -> dict[str, Any]:
    """What was watched against the user's id, each alone, for users with few rows in training."""
    alone = {"content": False, "request_time": False, "request": False, "long_history_length": 0}
    events = np.bincount(data.rows("train")["user_key"], minlength=len(data.users["id"]))[queries.user_key]
    most = int(np.median(events))

    def by_id(seed: int) -> Any:
        model = fitted(settings(**alone, user_id=True, seed=seed), data, history=False)
        return lambda q: model.score_items({**q, "history": 0 * q["history"]})

    found = (
        over_seeds("history alone", lambda seed: fitted(settings(**alone, seed=seed), data).score_items),
        over_seeds("user id alone", by_id),
    )
    few = [{key: np.where(events <= most, own, np.nan) for key, own in one.items()} for one in found]
    return paired_row(f"{name}, history against user id, at most {most} training rows", few[0], few[1], "above")


def planted(seed: int) -> dict[str, np.ndarray]:
    """Encoded rows: every user watches 12 items of his own block."""
    rng = np.random.default_rng(seed)
    users, each = BLOCKS * USERS, 12
    drawn = rng.permuted(np.tile(np.arange(ITEMS), (users, 1)), axis=1)[:, :each]
    key = np.repeat(np.arange(users, dtype=np.int32), each)
    item = (drawn + (np.arange(users) % BLOCKS)[:, np.newaxis] * ITEMS).ravel() + 2
    return {
        "user_key": key,
        "user": key + 2,
        "item": item.astype(np.int32),
        "timestamp": np.tile(np.arange(each), users),
        "positive": np.ones(users * each, bool),
    }


def foreign_share(changes: dict[str, Any], seed: int) -> float:
    """The share of the best 10 of each user that lie in other blocks than his."""
    tf.keras.utils.set_random_seed(seed)
    rows, config = planted(seed), settings(seed=seed, epochs=30, batch_size=256, learning_rate=0.1)
    examples = NextItemExamples(rows, 12, 12)
    loss = {"log_q": "counts", "negatives": 64, **changes}
    loss["negatives"] = min(loss["negatives"], 64)
    model = TwoTower(BLOCKS * ITEMS + 2, embedding_dim=2, history_length=12, hard_warmup=100, **loss)
    model.set_label_counts(examples.label_counts(model.num_items))
    model.compile(tf.keras.optimizers.Adagrad(config.learning_rate))
    fit(model, config, examples)
    history = rows["item"].reshape(-1, 12)
    scores = model.score_items({"history": tf.constant(history)}).numpy()[:, 2:]
    best = np.argsort(-scores, axis=1)[:, :10] // ITEMS
    return float((best != (np.arange(len(history)) % BLOCKS)[:, np.newaxis]).mean())


def on_blocks(a: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for variant in a.variants:
        found = [foreign_share(VARIANTS[variant], seed) for seed in a.seeds]
        folds = variant == "positives_only"
        share, spread = float(np.mean(found)), f"{min(found):.3f} to {max(found):.3f} over the seeds"
        random = 1 - 1 / BLOCKS
        row = {"case": f"blocks, {variant}: share of foreign items", "ours": round(share, 4), "peer": random}
        row |= {"ratio": round(share / random, 4), "bar": None if folds else round(MOST_FOREIGN / random, 4)}
        row |= {"ok": folds or share <= MOST_FOREIGN, "recall@10": None, "ndcg@10": None}
        rows.append({**row, "difference": spread, "users": BLOCKS * USERS})
        print(rows[-1], file=sys.stderr)
    return rows


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, QUICK, ["demo", "tfds:movielens/latest-small", "blocks"], "runs/negatives")
    names = list(VARIANTS)
    parser.add_argument("--variants", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="(0 1 2 3 4)")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="(test)")
    return parsed(parser, argv, QUICK)


def main(argv: list[str]) -> int:
    a = parse(argv)
    return tell(
        a,
        lambda source, a: on_blocks(a) if source == "blocks" else on_data(source, a),
        f"ours: the variant, peer: the shipped setting (or WALS). Recall@100 on {a.split}, mean of seeds {a.seeds};\n"
        "difference: paired, with its 95 % interval over users. blocks: share of foreign items, peer: at random.",
        FURTHER,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
