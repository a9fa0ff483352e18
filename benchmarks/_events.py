"""A log of a service that does not exist, of any size, written as it is made: `python benchmarks/_events.py N FOLDER`.

Power laws: of U = N / 50 users and I = 20 √N items, the share of the r most active users is (r / U)^½, and of the r
most popular items (r / I)^0.4. Sessions: a user comes for a while, 8 events in the mean, half a minute to some minutes
apart, and stays mostly with one genre; a few genres are each user's own. Drift: the catalogue grows from 40 % of the
items to all, the log begins with few of its users, and a third of what is watched is among the newest items. Rows are
ordered by time, as a service writes them.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START, DAYS, DAY = 1_672_531_200, 1000, 86_400  # from 2023-01-01, UTC
GENRES, OWN = 40, 3
PER_USER, SESSION = 50, 8
ROWS = 2**19  # of a row group


def sizes(rows: int) -> tuple[int, int]:
    """How many users and items there can be."""
    return max(rows // PER_USER, 100), max(int(20 * rows**0.5) // GENRES, 5) * GENRES


def events(rows: int, seed: int = 0) -> Iterator[pa.Table]:
    """The log: user and item string, timestamp int64, watch_time float32."""
    rng = np.random.default_rng(seed)
    users, items = sizes(rows)
    ends = np.linspace(0, rows, DAYS + 1).round().astype(np.int64)
    day = made = 0
    while day < DAYS:
        until = max(day + 1, int(np.searchsorted(ends, made + ROWS, "right")) - 1)
        counts = np.diff(ends[day : until + 1])
        yield _of_days(rng, day, counts, users, items)
        made, day = int(ends[until]), until


def _of_days(rng: np.random.Generator, first: int, counts: np.ndarray, users: int, items: int) -> pa.Table:
    """The events of some days, `counts` of each."""
    n = int(counts.sum())
    day = np.repeat(np.arange(first, first + len(counts)), counts)
    begins = rng.random(n) < 1 / SESSION
    begins[np.cumsum(counts)[counts > 0] - counts[counts > 0]] = True
    session = np.cumsum(begins) - 1
    of = np.flatnonzero(begins)  # the first event of each session
    known = (0.2 + 0.8 * (day[of] + 1) / DAYS) * users
    user = np.minimum((known * rng.random(len(of)) ** 2).astype(np.int64), users - 1)
    own = (user * 2_654_435_761 + rng.integers(0, OWN, len(of)) * 40_503) % 2**32 % GENRES
    genre = np.where(rng.random(len(of)) < 0.7, own, rng.integers(0, GENRES, len(of)))
    gap = rng.exponential(90, n).astype(np.int64) + 20
    elapsed = np.cumsum(gap)
    second = (rng.random(len(of)) * (DAY - 3 * 3600)).astype(np.int64)[session] + elapsed - elapsed[of][session]
    there = (0.4 + 0.6 * (day + 1) / DAYS) * items
    rank = (items * rng.random(n) ** 2.5).astype(np.int64)
    newest = there.astype(np.int64) - 1 - (0.05 * there * rng.random(n) ** 2).astype(np.int64)
    block = rank // GENRES * 48_271 % (items // GENRES)  # so that popular items lie anywhere
    popular = (block * GENRES + rank % GENRES) % there.astype(np.int64)
    item = np.where(rng.random(n) < 1 / 3, newest, popular)
    at_home = rng.random(n) < 0.8
    item = np.where(at_home, item // GENRES * GENRES + genre[session], item)
    stamp = START + day * DAY + np.minimum(second, DAY - 1)
    order = np.argsort(stamp, kind="stable")
    return pa.table(
        {
            "user": pa.array((user * 1_000_003 % 2**31)[session][order]).cast(pa.string()),
            "item": pa.array(item[order]).cast(pa.string()),
            "timestamp": stamp[order],
            "watch_time": (rng.gamma(2.0, 300, n) * np.where(at_home, 1.5, 1.0)).astype(np.float32),
        }
    )


def catalogue(rows: int) -> pa.Table:
    """The items: item, title, year and genres."""
    item = np.arange(sizes(rows)[1])
    genres = pa.array([[f"genre {n}"] for n in range(GENRES)])
    return pa.table(
        {
            "item": pa.array(item).cast(pa.string()),
            "title": [f"Title {n}" for n in item],
            "year": (1980 + item * 45 // len(item)).astype(np.int16),
            "genres": genres.take(pa.array(item % GENRES)),
        }
    )


def write(rows: int, folder: Path, seed: int = 0) -> None:
    """Writes `events.parquet` and `items.parquet`."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = events(rows, seed)
    first = next(tables)
    with pq.ParquetWriter(folder / "events.parquet", first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
    pq.write_table(catalogue(rows), folder / "items.parquet")


if __name__ == "__main__":
    started = time.perf_counter()
    write(int(float(sys.argv[1])), Path(sys.argv[2]))
    size = os.path.getsize(Path(sys.argv[2]) / "events.parquet")
    print(f"{time.perf_counter() - started:.1f} s, {size / 1e6:,.0f} MB")
