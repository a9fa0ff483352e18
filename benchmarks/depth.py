"""What hidden layers of the two-tower's query are worth, by the size of the data and the kind of taste.

On MovieLens every width is the shipped two-tower but for its hidden layers: Recall@100 on `test`, a user's figure the
mean over the seeds, differences paired by user. ours is the variant, peer no hidden layer. Rows say that no depth is
better there beyond chance.

`planted` holds a million events of a taste that no sum expresses. A session is a film of genre a, one of genre b, and
one of genre (a + b) mod 8, each drawn in its genre by popularity; a and b are uniform and new in each session. Which
third film follows is learned from 90 % of the users; the figure is how often it is among the best 10 for the others,
after its session's first two. One row says that a hidden layer is better there, beyond chance, than none.

The last row of each is the width that `hidden_units = "auto"` chooses there, against the best of the others: it may not
be worse beyond chance. Of few planted events it only informs: what the size says, a taste can contradict.

Source: Covington, Adams and Sargin 2016, §3.
"""

import argparse
import sys
from typing import Any

from _retrieval import FURTHER, encoded, figures, fit, fitted, mean_over, paired_row, settings
from _table import parsed, parser_of, tell

# TensorFlow comes after `_retrieval`, which chooses Keras 2.
import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip

from shortlist.components._examples import NextItemExamples
from shortlist.components._queries import build_queries
from shortlist.models.two_tower import TwoTower
from shortlist.trainers import two_tower

WIDTHS: tuple[tuple[int, ...], ...] = ((), (32,), (128,), (256, 128))
QUICK = {"data": ["planted"], "widths": [WIDTHS[0], WIDTHS[2]], "seeds": [0], "events": 120_000}
GENRES, FILMS, SESSIONS = 8, (20, 20, 40), 20  # films a genre of the first, second and third places


def planted(events: int) -> dict[str, np.ndarray]:
    """Encoded rows, three a session."""
    rng = np.random.default_rng(0)
    users = events // (3 * SESSIONS)
    first, second = rng.integers(0, GENRES, (2, users, SESSIONS))
    items, start = [], 2
    for genre, films in zip((first, second, (first + second) % GENRES), FILMS, strict=True):
        popularity = 1 / np.arange(1, films + 1)
        film = rng.choice(films, genre.shape, p=popularity / popularity.sum())
        items.append(start + genre * films + film)
        start += GENRES * films
    key = np.repeat(np.arange(users, dtype=np.int32), 3 * SESSIONS)
    return {
        "user_key": key,
        "user": key + 2,
        "item": np.stack(items, axis=2).ravel().astype(np.int32),  # [users × sessions × 3]
        "timestamp": np.tile(np.arange(3 * SESSIONS), users),
        "positive": np.ones(len(key), bool),
    }


def held_in(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Which rows are of the users to learn from."""
    return rows["user_key"] < (int(rows["user_key"][-1]) + 1) * 9 // 10


def examples_of(rows: dict[str, np.ndarray]) -> NextItemExamples:
    train = held_in(rows)
    return NextItemExamples({name: values[train] for name, values in rows.items()}, 2, 3 * SESSIONS)


def hits(rows: dict[str, np.ndarray], widths: tuple[int, ...], seed: int) -> np.ndarray:
    """How often each held-out user's third films are among the best 10."""
    tf.keras.utils.set_random_seed(seed)
    train, examples = held_in(rows), examples_of(rows)
    epochs = max(6, min(20, 6_000_000 // len(train)))
    config = settings(seed=seed, epochs=epochs, batch_size=1024, learning_rate=0.1, examples_per_user=3 * SESSIONS)
    model = TwoTower(2 + GENRES * sum(FILMS), embedding_dim=32, history_length=2, hidden_units=widths)
    model.set_label_counts(examples.label_counts(model.num_items))
    model.compile(tf.keras.optimizers.Adagrad(config.learning_rate))
    fit(model, config, examples)
    sessions = rows["item"][~train].reshape(-1, 3)
    found = []
    for part in np.array_split(sessions, -(-len(sessions) // 4096)):
        best = tf.math.top_k(model.score_items({"history": tf.constant(part[:, :2])})[:, 2:], 10)[1].numpy() + 2
        found.append((best == part[:, 2:]).any(axis=1))
    return np.concatenate(found).reshape(-1, SESSIONS).mean(axis=1)


def on_planted(a: argparse.Namespace) -> list[dict[str, Any]]:
    rows = planted(a.events)
    users = [np.mean([hits(rows, widths, seed) for seed in a.seeds], axis=0) for widths in a.widths]
    figure = [{"recall@100": u, "recall@10": u, "ndcg@10": u} for u in users]
    deepest = max(range(1, len(users)), key=lambda n: users[n].mean(), default=0)
    found = []
    for n, widths in enumerate(a.widths):
        case = f"planted, {len(rows['item']):,} events, {shown(widths)}: hits in 10"
        found.append({**paired_row(case, figure[n], figure[0], "above" if n == deepest > 0 else ""), "ndcg@10": None})
        print(found[-1], file=sys.stderr)
    name = f"planted, {len(rows['item']):,} events"
    of_widths = dict(zip(a.widths, figure, strict=True))
    chosen = auto_row(name, examples_of(rows), of_widths, bar=len(rows["item"]) > 900_000)
    return [*found, *({**row, "ndcg@10": None} for row in chosen)]


def on_data(source: str, a: argparse.Namespace) -> list[dict[str, Any]]:
    data = encoded(source, a.archive_dir, a.workdir)
    queries = build_queries(data, a.split)
    name = f"{source.removeprefix('tfds:').partition(':')[0]}, {len(data.rows('train')['item']):,} training rows"
    of_widths: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
    rows = []
    for widths in a.widths:
        models = (fitted(settings(hidden_units=widths, seed=seed), data) for seed in a.seeds)
        found = mean_over([figures(model.score_items, queries) for model in models])
        of_widths[widths] = found
        peer = of_widths[a.widths[0]]
        rows.append(paired_row(f"{name}, {shown(widths)}", found, peer, "not above" if widths else ""))
        print(rows[-1], file=sys.stderr)
    examples = two_tower.make_examples(settings(), data, data.rows("train"))
    return [*rows, *auto_row(name, examples, of_widths)]


def auto_row(
    name: str, examples: NextItemExamples, found: dict[tuple[int, ...], dict[str, np.ndarray]], bar: bool = True
) -> list[dict[str, Any]]:
    """What "auto" chooses of the widths against the best of the others; nothing if they don't hold it."""
    chosen = two_tower.depth(settings(hidden_units="auto"), examples)
    others = {w: float(np.nanmean(f["recall@100"])) for w, f in found.items() if w != chosen}
    if chosen not in found or not others:
        return []
    best = max(others, key=lambda widths: others[widths])
    case = f"{name}, auto: {shown(chosen)}, against {shown(best)}"
    return [paired_row(case, found[chosen], found[best], "reaches" if bar else "")]


def shown(widths: tuple[int, ...]) -> str:
    return " → ".join(map(str, widths)) or "no hidden layer"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, QUICK, ["demo", "tfds:movielens/latest-small", "planted"], "runs/depth")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--events", type=int, default=1_000_000, help="of the planted data (1,000,000)")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="(test)")
    parser.set_defaults(widths=list(WIDTHS))
    return parsed(parser, argv, QUICK)


def main(argv: list[str]) -> int:
    a = parse(argv)
    return tell(
        a,
        lambda source, a: on_planted(a) if source == "planted" else on_data(source, a),
        f"ours: the variant, peer: no hidden layer. Recall@100 on {a.split}, or hits in 10; mean of seeds {a.seeds}.\n"
        "difference: paired, with its 95 % interval over users.",
        FURTHER,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
