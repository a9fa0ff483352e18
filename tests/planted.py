"""A log whose structure is known: two blocks of taste, and a preference for what is new that only a ranker can use.

Even users watch even items, odd users odd items. In the first three fifths of their rows they watch as many items of
1975 as of 2015; after that, only those of 2015. So the sources, trained on the first part, can know the block and
nothing more (and popularity nothing at all), and the year decides within it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, ITEMS, ROWS = 120, 120, 30
SHARES = {"train": 18, "rank_train": 6, "validation": 3, "test": 3}
START, DAY = 1_500_000_000, 86_400
LATE_ITEM, LATE_ITEM_USERS = ITEMS, (0, 2, 4)  # an item that only the test part has


def item(n: int) -> str:
    return f"item {n:03}"


def user(n: int) -> str:
    return f"user {n:03}"


def is_new(n: Any) -> Any:
    return n % 4 < 2


def block(name: str) -> int:
    """0 or 1, of a user or an item by its id."""
    return int(name.split()[1]) % 2


def log(seed: int = 0) -> dict[str, np.ndarray]:
    """Columns user, item (numbers) and timestamp, in the order of time for every user; no item twice a user."""
    rng = np.random.default_rng(seed)
    early, late = SHARES["train"], ROWS - SHARES["train"]
    items = []
    for u in range(USERS):
        own = rng.permutation(np.arange(u % 2, ITEMS, 2))
        new = is_new(own)
        first = [*own[new][late:][: early // 2], *own[~new][: early // 2]]
        items.append([*rng.permutation(first), *own[new][:late]])
    for u in LATE_ITEM_USERS:
        items[u][-1] = LATE_ITEM
    times = START + np.arange(ROWS) * DAY + np.arange(USERS)[:, np.newaxis]
    return {"user": np.repeat(np.arange(USERS), ROWS), "item": np.ravel(items), "timestamp": times.ravel()}


def write(folder: Path, columns: dict[str, np.ndarray]) -> dict[str, str]:
    """The log as files, and the settings that name them."""
    table = {
        "user": [user(n) for n in columns["user"]],
        "item": [item(n) for n in columns["item"]],
        "timestamp": columns["timestamp"],
    }
    content = {
        "item": [item(n) for n in range(ITEMS + 1)],
        "title": [f"Title {n}" for n in range(ITEMS + 1)],
        "year": pa.array([2015 if is_new(n) else 1975 for n in range(ITEMS + 1)], pa.int16()),
        "genres": [["all"]] * (ITEMS + 1),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / "log.parquet")
    pq.write_table(pa.table(content), folder / "items.parquet")
    return {"data.source": f"parquet:{folder / 'log.parquet'}", "data.items": str(folder / "items.parquet")}


SMALL: dict[str, Any] = {
    "baselines.item_knn.neighbours": 20,
    "sources.wals.embedding_dim": 4,
    "sources.wals.epochs": 4,
    "sources.two_tower.embedding_dim": 8,
    "sources.two_tower.batch_size": 128,
    "sources.two_tower.epochs": 8,
    "sources.two_tower.examples_per_user": 8,
    "sources.two_tower.content": False,
    "shortlist.size": 60,
    "shortlist.quota": 60,
    "ranker.hidden_units": [16],
    "ranker.learning_rate": 0.01,
    "ranker.batch_size": 512,
    "ranker.epochs": 8,
    "evaluation.cutoffs": [10, 30],
}
"""Settings that make the pipeline as small as the log."""
