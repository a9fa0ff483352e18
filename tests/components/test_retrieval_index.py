"""The index of a trained retriever: the model's own scores, ids at the exit, any k and any exclusion."""

from pathlib import Path
from typing import Any

import fixed_models
import numpy as np
import oracles
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components._first_stage import load_index
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Artifact
from shortlist.components.pipeline import Node, Pipeline
from shortlist.components.retrieval_index import RetrievalIndex
from shortlist.components.trainer import Trainer
from shortlist.models import discover
from shortlist.trainers import item_knn, popularity, two_tower, wals

CONFIGS = {
    "wals": wals.Config(embedding_dim=3, epochs=1),
    "two_tower": two_tower.Config(embedding_dim=4, epochs=1),
    "item_knn": item_knn.Config(),
    "popularity": popularity.Config(window_days=900),
}


def train(pipeline: Pipeline, name: str, encoded: Node) -> Node:
    return pipeline.add(Trainer(CONFIGS[name], name, f"shortlist.trainers.{name}:train"), encoded)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    pipeline = Pipeline(tmp_path_factory.mktemp("index"))
    encoded = fixed_models.encoded(pipeline, fixed_models.random_parts(3, users=15, items=20))
    for name in CONFIGS:
        pipeline.add(RetrievalIndex(name), train(pipeline, name, encoded), encoded)
    return pipeline.run()


@pytest.fixture(scope="module")
def query(run: dict[str, Artifact]) -> dict[str, tf.Tensor]:
    """Requests with long, short and empty histories, of an unknown user too."""
    rng = np.random.default_rng(0)
    history = rng.integers(2, EncodedData(run["Transform"]).num_items, (6, 7)).astype(np.int32)
    history[np.arange(7)[np.newaxis] >= np.array([[7], [3], [1], [0], [7], [2]])] = 0
    times = np.where(history > 0, 1_500_000_000 + 1_000 * np.arange(7), 0)
    return {
        "user": tf.constant([2, 3, 4, 1, 1, 9], tf.int32),
        "history": tf.constant(history),
        "history_time": tf.constant(times, tf.int64),
        "time": tf.constant([1_500_000_000 + 100_000 * n for n in range(6)], tf.int64),
    }


@pytest.mark.parametrize("name", list(CONFIGS))
def test_scores_are_the_models_own(run: dict[str, Artifact], query: dict[str, tf.Tensor], name: str) -> None:
    index = load_index(run[f"RetrievalIndex.{name}"])
    discover()
    model = tf.keras.models.load_model(str(run[f"Trainer.{name}"] / "model.keras"))
    scores = index.scores(query).numpy()
    np.testing.assert_allclose(scores, model.score_items(query), rtol=1e-5, atol=1e-6)
    assert len(np.unique(scores[:, 2:], axis=0)) > 1 or name == "popularity"
    assert hasattr(index, "item_vectors") == (name in ("wals", "two_tower"))
    if hasattr(index, "item_vectors"):
        np.testing.assert_allclose(index.item_vectors(), model.item_vectors(), rtol=1e-5, atol=1e-7)
        psi = index.retriever.embed_query(query).numpy()
        np.testing.assert_allclose(psi @ index.item_vectors().numpy().T, scores, rtol=1e-5, atol=1e-6)
    assert (run[f"RetrievalIndex.{name}"] / "model.json").read_bytes() == (
        run[f"Trainer.{name}"] / "model.json"
    ).read_bytes()


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["wals", "item_knn", "popularity"]),
    st.integers(1, 40),
    st.lists(st.lists(st.integers(-2, 30), min_size=4, max_size=4), min_size=6, max_size=6),
)
def test_retrieve_gives_ids_without_the_excluded(
    run: dict[str, Artifact], query: dict[str, tf.Tensor], name: str, k: int, exclude: list[list[int]]
) -> None:
    index = load_index(run[f"RetrievalIndex.{name}"])
    ids, values = index.retrieve(query, tf.constant(exclude, tf.int32), tf.constant(k))
    items, expected = oracles.top_k(index.scores(query).numpy(), k, exclude, first_id=2)
    names = np.array(["", "", *(run["Transform"] / "items.txt").read_text().splitlines()])
    assert np.char.decode(ids.numpy().astype("S"), "utf-8").tolist() == names[items].tolist()
    np.testing.assert_array_equal(values, expected)


def test_beyond_the_catalogue_and_without_exclusion(run: dict[str, Artifact], query: dict[str, tf.Tensor]) -> None:
    index = load_index(run["RetrievalIndex.two_tower"])
    count = EncodedData(run["Transform"]).num_items - 2
    ids, values = index.retrieve(query, tf.zeros([6, 0], tf.int32), tf.constant(count + 5))
    assert ids.shape == values.shape == (6, count + 5)
    catalogue = sorted((run["Transform"] / "items.txt").read_bytes().splitlines())
    for line, own in zip(ids.numpy(), values.numpy(), strict=True):
        assert sorted(line[:count]) == catalogue
        assert set(line[count:]) == {b""}
        assert np.isneginf(own[count:]).all()
        assert (np.diff(own[:count]) <= 0).all()


def test_a_model_of_another_encoding_is_refused(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    ours = fixed_models.encoded(pipeline, fixed_models.random_parts(1))
    theirs = fixed_models.encoded(pipeline, fixed_models.random_parts(2), "theirs")
    pipeline.add(RetrievalIndex(), train(pipeline, "popularity", theirs), ours)
    with pytest.raises(ShortlistError, match=r"\(Model\) was not made from .* \(Encoded\): .* Run the pipeline again"):
        pipeline.run()


def test_the_step_depends_on_the_index_and_on_no_model() -> None:
    found: Any = RetrievalIndex("x").modules()
    assert "shortlist.models._index" in found
    assert not [name for name in found if name.startswith("shortlist.models.") and "._" not in name]
