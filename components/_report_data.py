"""What a report shows beyond the evaluation: recall by length, a map of the items, recommendations with reasons."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shortlist.components._config import toml_lines
from shortlist.components._queries import EncodedData, Queries
from shortlist.components.artifacts import LINEAGE, Artifact
from shortlist.components.metrics import FIRST_ID, bootstrap_means, find_targets

LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 300)
SHOWN, LAST = 10, 5
"""Recommendations of an example, and how many of the items watched before."""
SAMPLES = 1000


@dataclass(frozen=True)
class Step:
    """A step of the run, from its `lineage.json`."""

    name: str
    fingerprint: str
    config: Mapping[str, Any]
    started: str
    seconds: float
    versions: Mapping[str, str]

    def lines(self) -> list[str]:
        """The settings as TOML; one that is not set is absent."""
        lines = toml_lines(self.config)
        head = json.dumps(self.name) if "." in self.name else self.name
        return [f"[{head}]", *lines, ""] if lines else []


@dataclass(frozen=True)
class Recommendation:
    """An item of a list, and why it is there: its rank in each source that proposed it, and the watched item that is
    most similar to it, with their cosine; both are None where the sources have no vectors or nothing was watched."""

    title: str
    proposed: Mapping[str, int]
    similar: str | None
    cosine: float | None
    target: bool


@dataclass(frozen=True)
class Example:
    """A user: the titles last watched, the newest first, and what is recommended."""

    user: str
    last: Sequence[str]
    watched: int
    items: Sequence[Recommendation]


@dataclass(frozen=True)
class Point:
    """An item of the map."""

    x: float
    y: float
    title: str
    genre: str
    genres: str
    watches: int


def history_of(artifacts: Sequence[Artifact]) -> list[Step]:
    """These artifacts and all that they were made from, each after what it was made from."""
    found: dict[Path, Step] = {}

    def visit(folder: Path) -> None:
        if folder in found:
            return
        made = json.loads((folder / LINEAGE).read_text("utf-8"))
        for source in made["inputs"].values():
            visit(folder.parents[2] / source["uri"])
        names = ("component", "fingerprint", "config", "started", "seconds", "versions")
        found[folder] = Step(*(made[name] for name in names))

    for artifact in artifacts:
        visit(artifact.uri)
    return list(found.values())


def lengths(size: int) -> list[int]:
    """Where recall is measured along a list of `size` items."""
    return [*(n for n in LENGTHS if n < size), size]


def recall_curves(
    lists: Mapping[str, np.ndarray], queries: Queries, at: Sequence[int], seed: int
) -> dict[str, list[dict[str, float]]]:
    """Mean recall of lists int32 `[Q, K]` by name, at each length, with its interval over users."""
    offsets, items = queries.targets.offsets, queries.targets.values
    curves = {}
    for name, ranked in lists.items():
        own = find_targets(ranked, offsets, items).metrics(at)
        table = np.stack([own[f"recall@{n}"] for n in at], axis=1)  # [Q, N]
        points = zip(at, *bootstrap_means(table, SAMPLES, seed), strict=True)
        curves[name] = [
            {"length": n, "value": float(v), "low": float(low), "high": float(high)} for n, v, low, high in points
        ]
    return curves


def contributions(
    lists: Mapping[str, np.ndarray], queries: Queries, size: int, seed: int, union: str = ""
) -> list[dict[str, Any]]:
    """What each of several lists int32 `[Q, K]` finds in its first `size` items, and what no other of them does.

    Returns:
      For each list `name`, `recall` (mean over users with its interval), and of all positives, each once a query, the
      shares `found` and `only` (in no other list; None for the list called `union`, which is made of the others).
      Last a row "any" of all other lists together, each with `size` items, without a recall.
    """
    offsets, items = queries.targets.offsets, queries.targets.values
    there, recall, positives = {}, {}, 1
    for name, ranked in lists.items():
        found = find_targets(ranked[:, :size], offsets, items)
        there[name] = np.zeros(len(items), bool)
        there[name][found.row] = True
        means = bootstrap_means(found.metrics([size])[f"recall@{size}"][:, np.newaxis], SAMPLES, seed)
        recall[name] = dict(zip(("value", "low", "high"), (float(m[0]) for m in means), strict=True))
        positives = max(int((found.first == np.arange(len(items))).sum()), 1)
    times = np.sum([own for name, own in there.items() if name != union], axis=0)  # [N], in how many lists it is
    rows: list[dict[str, Any]] = []
    for name, own in there.items():
        only = None if name == union else float((own & (times == 1)).sum() / positives)
        rows.append({"name": name, "recall": recall[name], "found": float(own.sum() / positives), "only": only})
    return [*rows, {"name": "any", "recall": None, "found": float((times > 0).sum() / positives), "only": None}]


class Texts:
    """What the items are called: titles, or ids where there are none, objects `[I]`, and the genres of each."""

    def __init__(self, data: EncodedData):
        table = pq.read_table(data.artifact / "items.parquet", columns=["id", "title", "genres"])
        titles = pc.fill_null(table["title"], "")
        self.titles = pc.if_else(pc.equal(titles, ""), table["id"], titles).to_numpy()
        self._genres, self._names = table["genres"], data.state["genres"]

    def genres(self, item: int) -> list[str]:
        """In the order in which the data has them."""
        return [self._names[genre - FIRST_ID] for genre in self._genres[int(item)].as_py()]


def item_map(data: EncodedData, vectors: np.ndarray, most: int) -> tuple[list[Point], tuple[float, float]] | None:
    """The most watched items where most of their vectors' variance shows, and the share of it on each axis.

    The first two principal components of the vectors float32 `[I, D]`, by singular value decomposition of what remains
    without their mean; each axis points to where its farthest item lies. None where there are fewer than 3 items, or
    their vectors are all the same.
    """
    rows = data.fitted_rows()
    counts = np.bincount(rows["item"][rows["positive"]], minlength=data.num_items)
    counts[:FIRST_ID] = 0
    order = np.argsort(-counts, kind="stable")[:most]
    shown = order[counts[order] > 0]
    if len(shown) < 3:
        return None
    centred = vectors[shown].astype(np.float64) - vectors[shown].mean(axis=0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    variance = singular**2
    if not variance.sum() > 0:
        return None
    place = np.zeros((len(shown), 2))
    place[:, : len(singular)] = (left * singular)[:, :2]
    far = np.abs(place).argmax(axis=0)
    place *= np.where(place[far, [0, 1]] < 0, -1, 1)
    share = np.append(variance, 0)[:2] / variance.sum()
    texts = Texts(data)
    genres = [texts.genres(i) for i in shown]
    points = [
        Point(float(x), float(y), texts.titles[i], (own or [""])[0], ", ".join(own), int(counts[i]))
        for (x, y), i, own in zip(place, shown, genres, strict=True)
    ]
    return points, (float(share[0]), float(share[1]))


def examples(
    data: EncodedData,
    queries: Queries,
    chosen: np.ndarray,
    ranked: np.ndarray,
    proposed: Mapping[str, np.ndarray],
    vectors: np.ndarray | None,
) -> list[Example]:
    """Recommendations of some queries, and their reasons.

    Args:
      data: the encoded data.
      queries: of the split.
      chosen: int `[E]`, of these the ones to show.
      ranked: int32 `[E, k]`, the recommendations of each, 0 = none left.
      proposed: int32 `[E, q]` by source, what it proposed, best first.
      vectors: float32 `[I, D]` of the items, to compare them by.
    """
    texts = Texts(data)
    titles, found = texts.titles, []
    for e, q in enumerate(chosen):
        items = ranked[e][ranked[e] >= FIRST_ID]
        watched = queries.history.values[queries.history.offsets[q] : queries.history.offsets[q + 1]]
        targets = queries.targets.values[queries.targets.offsets[q] : queries.targets.offsets[q + 1]]
        similar: list[tuple[str | None, float | None]] = [(None, None)] * len(items)
        if vectors is not None and len(watched):
            nearest, cosine = most_similar(items, watched, vectors)
            similar = [(titles[i], float(c)) for i, c in zip(nearest, cosine, strict=True)]
        ranks = {name: place_of(items, own[e]) for name, own in proposed.items()}
        listed = [
            Recommendation(
                titles[item],
                {name: int(own[n]) for name, own in ranks.items() if own[n]},
                *similar[n],
                bool((targets == item).any()),
            )
            for n, item in enumerate(items)
        ]
        last = list(dict.fromkeys(titles[i] for i in watched[::-1][: 4 * LAST]))[:LAST]
        found.append(Example(str(data.users["id"][queries.user_key[q]]), last, len(watched), listed))
    return found


def most_similar(items: np.ndarray, watched: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each item int `[k]` the watched one `[L]` of highest cosine, the latest of equals, and that cosine `[k]`."""
    mine, theirs = (_unit(vectors[rows]) for rows in (items, watched[::-1]))
    cosine = mine @ theirs.T  # [k, L]
    best = cosine.argmax(axis=1)
    return watched[::-1][best], cosine[np.arange(len(items)), best]


def place_of(items: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """The rank from 1 of each item `[k]` in a list `[q]`, 0 where it is not."""
    same = ranked == items[:, np.newaxis]  # [k, q]
    return np.where(same.any(axis=1), same.argmax(axis=1) + 1, 0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
