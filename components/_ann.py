"""Approximate search for the largest dot products, outside the graph: for catalogues too large to score in whole."""

import time
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from shortlist import ShortlistError
from shortlist.components._config import Config
from shortlist.components._top_k import top_k
from shortlist.components.artifacts import Index

ANN, ABOUT = "ann.faiss", "ann.json"
FIRST_ID, CODES, BATCH = 2, 256, 256
Kind = Literal["exact", "hnsw", "ivf_pq"]


class IndexConfig(Config):
    """How the candidates of a factorized retriever are searched outside the served graph, which is always exact.

    The first stage over `rank_train`, `validation` and `test` is asked so; the evaluation of a source by itself is not.

    Args:
      kind: "exact"; "hnsw", a graph of near items, fast and large; or "ivf_pq", lists around centres with compressed
        vectors, small. Both need `pip install "shortlist[faiss]"`.
      links: of hnsw: links of each item.
      construction, breadth: of hnsw: how many items are looked at while the graph is built, and in a search, at least.
      lists, probes: of ivf_pq: the centres, √I where None, and how many of them a search looks at.
      code_bytes: of ivf_pq: of each compressed vector.
      refine: of ivf_pq: so many times as many items are found as are wanted, and these put in order exactly.
      threads: of the building; None for all. With more than one the links of hnsw differ from run to run.
    """

    kind: Kind = "exact"
    links: int = pydantic.Field(48, ge=2)
    construction: int = pydantic.Field(200, ge=1)
    breadth: int = pydantic.Field(1280, ge=1)
    lists: int | None = pydantic.Field(None, ge=1)
    probes: int = pydantic.Field(32, ge=1)
    code_bytes: int = pydantic.Field(32, ge=1)
    refine: int = pydantic.Field(10, ge=1)
    threads: int | None = pydantic.Field(None, ge=1)


class Approximate:
    """An index of item vectors whose answers are nearly those of `shortlist.components._top_k.top_k`.

    Both kinds are searched for dot products themselves, and of what is found the products are exact. The graph of hnsw
    is built of directions: linked by their products, the long vectors take the links, and many short ones are never
    reached. Of the 100 best of 100,000 items, vectors of WALS, a breadth of 1,024 found .991 so, and .9995 by
    directions; made equally long by one more number, √(R² − |v|²), with which the largest product is the nearest point
    (Bachrach et al. 2014), .991.

    Source: Malkov and Yashunin 2016 (HNSW); Morozov and Babenko 2018 (its graph of dot products); Jégou, Douze and
    Schmid 2011 (IVF-PQ), all as in faiss.

    Args:
      vectors: float32 `[I, D]`; the reserved rows are never found.
      config: of another kind than "exact".
      index: one that was saved; None builds it.

    Raises:
      ShortlistError: if faiss is not there, or the vectors are too few for what is asked.
    """

    def __init__(self, vectors: np.ndarray, config: IndexConfig, index: Any = None):
        self.vectors, self.config = np.ascontiguousarray(vectors, np.float32), config
        self.index = self._build() if index is None else index

    @classmethod
    def load(cls, path: Path, vectors: np.ndarray, config: IndexConfig) -> "Approximate":
        """The one that `save` wrote."""
        return cls(vectors, config, _faiss(config.kind).read_index(str(path)))

    def save(self, path: Path) -> None:
        _faiss(self.config.kind).write_index(self.index, str(path))

    def _build(self) -> Any:
        config, faiss = self.config, _faiss(self.config.kind)
        points = self._padded(self.vectors[FIRST_ID:])
        count, width = points.shape
        lists = self.config.lists or max(1, int(count**0.5))
        if config.kind == "ivf_pq" and count < max(lists, CODES):
            raise ShortlistError(
                f"`index.kind` ivf_pq must have at least as many items as lists, and {CODES}. Take hnsw, or exact, "
                f"which is fast for so few. Received: {count:,} items, lists={lists:,}."
            )
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(config.threads or threads)
        try:
            if config.kind == "hnsw":
                index = faiss.IndexHNSWFlat(width, config.links, faiss.METRIC_INNER_PRODUCT)
                index.hnsw.efConstruction = config.construction
            else:
                product = faiss.METRIC_INNER_PRODUCT
                index = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, lists, self._codes, 8, product)
                index.cp.spherical = False  # the centres keep the lengths of their items
                index.train(points)
            index.add(_directions(points) if config.kind == "hnsw" else points)
        finally:
            faiss.omp_set_num_threads(threads)
        if config.kind == "hnsw":  # the graph stays, what is searched for are the products
            faiss.copy_array_to_vector(points.view(np.uint8).ravel(), faiss.downcast_index(index.storage).codes)
        return index

    @property
    def _codes(self) -> int:
        return min(self.config.code_bytes, self.vectors.shape[1])

    def _padded(self, vectors: np.ndarray) -> np.ndarray:
        """With as many zeros as make pieces of one width for the codes, float32 `[N, D']`."""
        pad = -vectors.shape[1] % self._codes if self.config.kind == "ivf_pq" else 0
        return np.ascontiguousarray(np.pad(vectors, [(0, 0), (0, pad)]))

    def search(
        self, queries: np.ndarray, k: int, exclude: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items of each query that are found.

        Args:
          queries: float32 `[Q, D]`.
          k: at least 1.
          exclude: offsets `[Q + 1]` and item rows, never to return.

        Returns:
          `items` int32 `[Q, k]`, best first, 0 where none is left, and their products float32, −∞ there.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        offsets, seen = (np.zeros(len(queries) + 1, np.int64), np.zeros(0, np.int32)) if exclude is None else exclude
        items, scores = np.zeros((len(queries), k), np.int32), np.full((len(queries), k), -np.inf, np.float32)
        for start in range(0, len(queries), BATCH):
            rows = slice(start, min(start + BATCH, len(queries)))
            counts = np.diff(offsets[rows.start : rows.stop + 1])
            found = self._near(queries[rows], k + int(counts.max(initial=0)))  # [B, M]
            products = np.einsum("bmd,bd->bm", self.vectors[found], queries[rows])
            owner = np.arange(len(found), dtype=np.int64)[:, np.newaxis] * len(self.vectors)
            never = np.repeat(owner[:, 0], counts) + seen[offsets[rows.start] : offsets[rows.stop]]
            products[(found < FIRST_ID) | np.isin(owner + found, never)] = -np.inf
            order = np.lexsort((found, -products), axis=1)[:, :k]
            best = np.take_along_axis(products, order, axis=1)
            width = best.shape[1]
            scores[rows, :width] = best
            items[rows, :width] = np.where(best > -np.inf, np.take_along_axis(found, order, axis=1), 0)
        return items, scores

    def _near(self, queries: np.ndarray, wanted: int) -> np.ndarray:
        """Item rows `[B, M]`, M at least `wanted` where there are so many; 0 where none was found."""
        config, faiss = self.config, _faiss(self.config.kind)
        wanted = min(wanted * (config.refine if config.kind == "ivf_pq" else 1), len(self.vectors) - FIRST_ID)
        if config.kind == "hnsw":
            given = faiss.SearchParametersHNSW(efSearch=max(config.breadth, wanted))
        else:
            given = faiss.SearchParametersIVF(nprobe=config.probes)
        _, ids = self.index.search(self._padded(queries), wanted, params=given)
        return np.where(ids >= 0, ids + FIRST_ID, 0)

    def megabytes(self) -> float:
        """What the index holds in memory; hnsw has vectors of its own."""
        return float(_faiss(self.config.kind).serialize_index(self.index).nbytes / 2**20)


def _directions(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; those of 0 stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def load_approximate(index: Index, vectors: np.ndarray) -> Approximate | None:
    """The approximate index of an `Index` whose item vectors float32 `[I, D]` are these; None where there is none."""
    if not (index / ANN).exists():
        return None
    return Approximate.load(index / ANN, vectors, IndexConfig(**index.read_json(ABOUT)["config"]))


def compare(index: Approximate, queries: np.ndarray, k: int = 100) -> dict[str, float]:
    """How an index answers `queries` float32 `[Q, D]` beside the exact search.

    Returns:
      `recall`, the share of the k best that is found; `queries`, `k`; the milliseconds a query, all of them asked at
      once, `milliseconds` and `exact_milliseconds`; and `megabytes` of the index.
    """
    nothing = np.zeros(len(queries) + 1, np.int64), np.zeros(0, np.int32)
    top_k(queries[:1], index.vectors, k, nothing[0][:2], nothing[1])  # compiles it
    started = time.perf_counter()
    exact = top_k(queries, index.vectors, k, *nothing)
    between = time.perf_counter()
    found, _ = index.search(queries, k)
    ended = time.perf_counter()
    width = len(index.vectors)
    keys = [np.arange(len(queries), dtype=np.int64)[:, np.newaxis] * width + rows for rows in (exact, found)]
    return {
        "recall": float(np.isin(keys[0], keys[1])[exact >= FIRST_ID].mean()),
        "k": k,
        "queries": len(queries),
        "milliseconds": 1000 * (ended - between) / len(queries),
        "exact_milliseconds": 1000 * (between - started) / len(queries),
        "megabytes": index.megabytes(),
    }


def _faiss(kind: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of SWIG's types, at the import
            import faiss
    except ImportError:
        raise ShortlistError(
            f"`index.kind` {kind} needs the package faiss-cpu. Received: an environment without it. Install it: "
            'pip install "shortlist[faiss]".'
        ) from None
    return faiss
