"""Approximate indexes against the exact search: recall, exclusions, and what is written."""

import json
import sys
from pathlib import Path
from typing import Any

import fixed_models
import numpy as np
import pytest
import tables

from shortlist import ShortlistError
from shortlist.components._ann import Approximate, IndexConfig, compare, load_approximate
from shortlist.components._first_stage import ShortlistConfig, build_shortlist, load_index
from shortlist.components._queries import EncodedData, build_queries
from shortlist.components._top_k import top_k
from shortlist.components.artifacts import Artifact, Index
from shortlist.components.candidate_generator import CandidateGenerator
from shortlist.components.pipeline import Pipeline
from shortlist.components.retrieval_index import RetrievalIndex
from shortlist.components.trainer import Trainer
from shortlist.trainers import item_knn, two_tower, wals

SMALL: dict[str, dict[str, Any]] = {
    "hnsw": {"kind": "hnsw", "links": 32, "breadth": 256, "threads": 1},
    "ivf_pq": {"kind": "ivf_pq", "lists": 8, "probes": 8, "code_bytes": 5, "refine": 20, "threads": 1},
}
MODELS: dict[str, Any] = {
    "wals": wals.Config(embedding_dim=4, epochs=2),
    "item_knn": item_knn.Config(),
    "two_tower": two_tower.Config(embedding_dim=4, epochs=1),
}
FIRST_STAGE = ShortlistConfig(size=12, quota={"wals": 6, "item_knn": 5, "two_tower": 9})


def vectors(items: int = 1500, dim: int = 9) -> np.ndarray:
    """In clusters, of very different lengths, so that the nearest point is not the largest product."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, dim))
    points = centres[rng.integers(0, 20, items)] + 0.3 * rng.normal(size=(items, dim))
    return (points * rng.lognormal(0, 0.7, (items, 1))).astype(np.float32)


def asked(count: int = 50, dim: int = 9) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, dim)).astype(np.float32)


@pytest.mark.parametrize("kind", SMALL)
def test_nearly_all_of_the_exact_answers_are_found(kind: str) -> None:
    index, queries = Approximate(vectors(), IndexConfig(**SMALL[kind])), asked()
    items, scores = index.search(queries, 20)
    exact = top_k(queries, index.vectors, 20, np.zeros(51, np.int64), np.zeros(0, np.int32))
    recall = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(items, exact, strict=True)])
    assert recall > 0.95
    assert (items >= 2).all()
    np.testing.assert_allclose(scores, np.einsum("qkd,qd->qk", index.vectors[items], queries), rtol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    about = compare(index, queries, 20)
    assert about["recall"] == pytest.approx(recall)
    assert (about["k"], about["queries"]) == (20, 50)
    assert about["milliseconds"] > 0 < about["exact_milliseconds"]
    assert about["megabytes"] > 0.02


def test_the_two_kinds_differ_as_they_should() -> None:
    large, small = (Approximate(vectors(), IndexConfig(**SMALL[kind])) for kind in ("hnsw", "ivf_pq"))
    assert large.megabytes() > 5 * small.megabytes()
    poor = Approximate(vectors(), IndexConfig(**{**SMALL["ivf_pq"], "probes": 1, "refine": 1}))
    assert compare(poor, asked(), 20)["recall"] < compare(small, asked(), 20)["recall"] - 0.1


@pytest.mark.parametrize("kind", SMALL)
def test_what_is_excluded_is_never_found_and_the_rest_is(kind: str) -> None:
    index, queries = Approximate(vectors(), IndexConfig(**SMALL[kind])), asked(3)
    plain, _ = index.search(queries, 30)
    seen = plain[0][:12], plain[1][:0], plain[2][5:6]
    offsets, values = np.cumsum([0, *map(len, seen)]), np.concatenate(seen).astype(np.int32)
    items, _ = index.search(queries, 10, (offsets, values))
    for row, own, never in zip(items, plain, seen, strict=True):
        expected = own[~np.isin(own, never)][:10]
        assert not set(row) & set(never)
        assert len(set(row) & set(expected)) >= 9


def test_short_vectors_are_reached_as_long_ones_are() -> None:
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(1500, 9)) * rng.lognormal(0, 1.5, (1500, 1))).astype(np.float32)
    index = Approximate(points, IndexConfig(kind="hnsw", links=8, construction=40, threads=1))
    items, scores = index.search(asked(5), 1498)
    assert (np.sort(items, axis=1) == np.arange(2, 1500)).all()  # of a graph by products, about half
    np.testing.assert_allclose(scores, np.einsum("qkd,qd->qk", points[items], asked(5)), rtol=1e-4, atol=1e-4)


def test_more_than_there_are() -> None:
    index = Approximate(vectors(7), IndexConfig(kind="hnsw"))
    items, scores = index.search(asked(2), 9, (np.array([0, 1, 1]), np.array([4], np.int32)))
    assert [sorted(row[row > 0]) for row in items] == [[2, 3, 5, 6], [2, 3, 4, 5, 6]]
    assert (np.isneginf(scores) == (items == 0)).all()
    assert items[0, -5:].tolist() == [0] * 5


def test_too_few_items_for_lists() -> None:
    with pytest.raises(ShortlistError) as error:
        Approximate(vectors(202), IndexConfig(kind="ivf_pq", lists=10))
    assert str(error.value) == (
        "`index.kind` ivf_pq must have at least as many items as lists, and 256. Take hnsw, or exact, which is fast "
        "for so few. Received: 200 items, lists=10."
    )


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ShortlistError) as error:
        Approximate(vectors(), IndexConfig(kind="hnsw"))
    assert str(error.value) == (
        "`index.kind` hnsw needs the package faiss-cpu. Received: an environment without it. Install it: "
        'pip install "shortlist[faiss]".'
    )


# --- as a step --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    p = Pipeline(tmp_path_factory.mktemp("ann"))
    parts = fixed_models.random_parts(7, users=20)
    parts["validation"].append(tables.row("stranger", "item 03", 1_600_000_000))  # without a history
    encoded = fixed_models.encoded(p, parts)
    config = IndexConfig(**SMALL["hnsw"])
    found: dict[str, Any] = {"": {}, "exact.": {}}
    for name, settings in MODELS.items():
        model = p.add(Trainer(settings, name, f"shortlist.trainers.{name}:train"), encoded)
        found[""][name] = p.add(RetrievalIndex(name, config), model, encoded)
        found["exact."][name] = p.add(RetrievalIndex(f"exact.{name}"), model, encoded)
    for kind, sources in found.items():
        p.add(CandidateGenerator(FIRST_STAGE, f"{kind}all"), encoded, sources)
    return p.run()


def indexes(run: dict[str, Artifact], *names: str) -> dict[str, Index]:
    return {name: run[f"RetrievalIndex.{name}"] for name in names}


def test_the_index_says_what_it_finds_of_the_exact_answers(
    run: dict[str, Artifact], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    about = json.loads((run["RetrievalIndex.wals"] / "ann.json").read_text())
    assert about["config"] == IndexConfig(**SMALL["hnsw"]).model_dump()
    assert about["recall"] == 1.0  # of 24 items
    assert (about["queries"], about["k"]) == (20, 100)
    RetrievalIndex("wals", IndexConfig(**SMALL["hnsw"])).run(tmp_path, run["Trainer.wals"], run["Transform"])
    assert "hnsw: recall@100 1.000 of the exact search, " in capsys.readouterr().err
    for name in ("exact.wals", "item_knn", "exact.item_knn"):
        assert not list(run[f"RetrievalIndex.{name}"].uri.glob("ann*"))
    notes = [run[f"RetrievalIndex.{name}"].read_json("model.json")["notes"] for name in ("wals", "exact.wals")]
    assert notes[0] == [
        *notes[1],
        "The candidates of wals are found by hnsw, which has 1.000 of the 100 best of the exact search; what is served "
        "is exact.",
    ]


def test_what_is_saved_is_found_again(run: dict[str, Artifact]) -> None:
    index = run["RetrievalIndex.wals"]
    loaded = load_index(index)
    ann = load_approximate(index, loaded.item_vectors().numpy())
    assert ann is not None
    queries = build_queries(EncodedData(run["Transform"]), "test")
    _, batch = next(queries.batches(100))
    psi = loaded.retriever.embed_query({n: v for n, v in batch.items() if n != "exclude"}).numpy()
    seen = queries.seen.offsets, queries.seen.values
    items, _ = ann.search(psi, 8, seen)
    np.testing.assert_array_equal(items, top_k(psi, ann.vectors, 8, *seen))
    assert load_approximate(run["RetrievalIndex.exact.wals"], ann.vectors) is None


def test_candidates_found_by_it_are_those_of_the_exact_search(run: dict[str, Artifact]) -> None:
    """Of 24 items hnsw finds all; one request has no history and is answered by popularity."""
    for split in ("rank_train", "validation", "test"):
        near, exact = (dict(np.load(run[f"CandidateGenerator.{kind}all"] / f"{split}.npz")) for kind in ("", "exact."))
        assert near.keys() == exact.keys()
        for name, values in near.items():
            np.testing.assert_allclose(values, exact[name], rtol=1e-4, atol=1e-4, err_msg=f"{split}, {name}")
        assert near["label"].any()
    assert len(near["items"]) == 20 == len(np.unique(near["items"], axis=0))


def test_a_source_with_an_index_is_asked_through_it(run: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def search(self: Approximate, queries: np.ndarray, k: int, exclude: Any) -> tuple[np.ndarray, np.ndarray]:
        asked.append(k)
        return np.tile(np.arange(2, 2 + k, dtype=np.int32), (len(queries), 1)), np.zeros((len(queries), k), np.float32)

    monkeypatch.setattr(Approximate, "search", search)
    data = EncodedData(run["Transform"])
    first_stage = build_shortlist(data, indexes(run, "wals", "item_knn", "two_tower"), FIRST_STAGE, approximate=True)
    _, batch = next(build_queries(data, "test").batches(100))
    proposals = first_stage.propose(batch, batch.pop("exclude"))
    assert asked == [6, 9]
    assert [np.unique(own, axis=0).tolist() for own in proposals.items[::2]] == [[[*range(2, 8)]], [[*range(2, 11)]]]
    assert [s.shape[1] for s in proposals.scores] == [5, data.num_items, 5]  # nothing else is scored


@pytest.mark.parametrize("names", [("wals",), ("wals", "item_knn"), ("item_knn", "two_tower")])
def test_what_is_closed_or_asked_for_alone_is_as_in_the_exact_first_stage(
    run: dict[str, Artifact], names: tuple[str, ...]
) -> None:
    data = EncodedData(run["Transform"])
    data.closed = np.isin(np.arange(data.num_items), [3, 8, 9, 20])  # type: ignore[misc]
    config = ShortlistConfig(size=7, quota=5)
    near, exact = (build_shortlist(data, indexes(run, *names), config, approximate=on) for on in (True, False))
    assert type(near) is not type(exact)
    _, batch = next(build_queries(data, "validation").batches(100))
    exclude, only = batch.pop("exclude"), np.tile(np.array([[2, 3, 11, 12, 13, 14, 15]], np.int32), (21, 1))
    for found, expected in (
        (near(batch, exclude), exact(batch, exclude)),
        *(
            ({"items": a}, {"items": b})
            for a, b in zip(
                near.propose(batch, exclude, only).items, exact.propose(batch, exclude, only).items, strict=True
            )
        ),
    ):
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
        assert not np.isin(found["items"], [3, 8, 9, 20]).any()
