"""ContentBased and KnowledgeBased as trainers make them, and as sources of a bundle."""

from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pyarrow as pa
import pytest
import small_run
import tables
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Encoded
from shortlist.models import discover
from shortlist.trainers import content_based, knowledge_based
from shortlist.trainers.two_stage import load_config, two_stage

ITEMS: list[tables.Row] = [
    {"item": "a", "title": "The Matrix", "year": 1999, "genres": ["Action", "Sci-Fi"], "language": "en"},
    {"item": "b", "title": "The Matrix Reloaded", "year": 2003, "genres": ["Action"], "language": "en"},
    {"item": "c", "title": "Amélie", "year": 2001, "genres": ["Comedy"], "language": "fr", "length": 7_300.0},
    {"item": "d", "title": None, "year": None, "genres": [], "language": None},
    {"item": "e", "title": "Taxi", "year": 1998, "genres": ["Action", "Comedy"], "language": "de"},
]
LOG = [("u", "abe"), ("v", "bac"), ("w", "dac"), ("x", "ab")]


def encoded(folder: Path, items: list[tables.Row] = ITEMS, **columns: pa.DataType) -> Encoded:
    columns = {"language": pa.string(), "length": pa.float64(), **columns}
    rows = [tables.row(user, item, 1_000 * n) for user, own in LOG for n, item in enumerate(own)]
    return tables.encode(tables.write_splits(folder / "s", {"train": rows}, items, item_columns=columns))


def train(trainer: Any, encoded: Encoded, workdir: Path, **settings: Any) -> tuple[Any, Any]:
    """The model and what of it is served."""
    workdir.mkdir()
    trainer.train(trainer.Config(**settings), {"encoded": encoded}, workdir)
    discover()
    return tf.keras.models.load_model(str(workdir / "model.keras")), tf.saved_model.load(str(workdir / "serving"))


def row_of(data: EncodedData) -> dict[str, int]:
    return {name: row for row, name in enumerate(data.items["id"])}


def query(*history: int) -> dict[str, tf.Tensor]:
    times = tf.zeros([1, len(history)], tf.int64)
    rows = tf.constant([history], tf.int32, [1, len(history)])
    return {"user": tf.constant([1]), "history": rows, "history_time": times, "time": tf.constant([9], tf.int64)}


def test_content_is_genres_years_titles_and_categories(tmp_path: Path) -> None:
    data = EncodedData(encoded(tmp_path))
    config = content_based.Config(title_tokens=2, title_weight=0.5, category_values=1)
    found, row = content_based.item_content(data, config), row_of(data)
    names = ["", "", *"abcde"]
    genres = {"a": (1, 0, 1), "b": (1, 0, 0), "c": (0, 1, 0), "e": (1, 1, 0)}  # Action, Comedy, Sci-Fi
    words = {"a": (1, 1), "b": (1, 1)}  # the two most frequent are "the" and "matrix"
    language = {"a": (0, 1), "b": (0, 1), "c": (1, 0), "e": (1, 0)}  # English is the most frequent, the rest shares one
    buckets = data.year_bucket()
    year = {name: tuple(float(buckets[row[name]] == 1 + b) for b in range(buckets.max())) for name in "abce"}
    blocks = {
        name: [block.get(item, (0,) * len(block["a"])) for item in names]
        for name, block in {"genres": genres, "year": year, "title": words, "language": language}.items()
    }
    expected = oracles.content_vectors(blocks, {"title": 0.5})
    places = [0, 1, *(row[item] for item in "abcde")]
    np.testing.assert_allclose(found[places], expected, rtol=1e-5, atol=1e-6)
    assert not found[row["d"]].any()  # nothing is known of it


def test_a_profile_is_served_as_it_was_made_and_trains_nothing(tmp_path: Path) -> None:
    artifact = encoded(tmp_path)
    row = row_of(EncodedData(artifact))
    model, served = train(content_based, artifact, tmp_path / "m", form="profile")
    scores = served.score_items(query(row["a"])).numpy()[0]
    np.testing.assert_allclose(scores, model.score_items(query(row["a"]))[0], atol=1e-6)
    assert np.argsort(-scores)[:2].tolist() == [row["a"], row["b"]]
    assert scores[[0, 1, row["d"]]].tolist() == [0, 0, 0]
    for history in ((), (1, 1), (row["d"],)):  # empty, unknown ids only, an item without content
        assert not served.score_items(query(*history)).numpy().any()
    assert not list((tmp_path / "m").rglob("events.out.tfevents.*"))


def test_a_network_knows_its_labels(tmp_path: Path) -> None:
    artifact = encoded(tmp_path)
    row = row_of(EncodedData(artifact))
    model, served = train(content_based, artifact, tmp_path / "m", epochs=1, hash_buckets=4, examples_per_user=2)
    assert {name for name in "abcde" if model.trained[row[name]]} == set("abce")  # d is only ever the first
    assert not model.bucket.numpy()[:2].any()
    assert model.bucket.numpy()[2:].all()
    for history in ((), (1, 1), (row["d"],), (row["a"], row["b"])):
        assert np.isfinite(served.score_items(query(*history))).all()


def test_a_network_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Two epochs, and one and one more, end with the same weights."""
    from shortlist.components.artifacts import Model

    artifact = encoded(tmp_path)
    settings = {"hash_buckets": 4, "examples_per_user": 2, "dropout": 0.0, "item_dropout": 0.0}
    whole, _ = train(content_based, artifact, tmp_path / "whole", epochs=2, **settings)
    train(content_based, artifact, tmp_path / "first", epochs=1, **settings)
    second = tmp_path / "second"
    second.mkdir()
    given = {"encoded": artifact, "start": Model(tmp_path / "first", "first")}
    content_based.train(content_based.Config(epochs=2, **settings), given, second)
    for one, other in zip(whole.weights, tf.keras.models.load_model(str(second / "model.keras")).weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_attributes_are_genres_and_the_frequent_categories(tmp_path: Path) -> None:
    artifact = encoded(tmp_path)
    data = EncodedData(artifact)
    row = row_of(data)
    names, has = knowledge_based.item_attributes(data, 2)
    assert names["genres"] == ["Action", "Comedy", "Sci-Fi"]
    assert names["language"][0] == "en"
    assert set(names["language"][1:]) < {"fr", "de"}
    assert has[row["a"]].tolist() == [1, 0, 1, 1, 0]
    assert has[[0, 1, row["d"]]].sum() == 0


def test_knowledge_is_served_with_its_explanation(tmp_path: Path) -> None:
    artifact = encoded(tmp_path)
    row = row_of(EncodedData(artifact))
    model, served = train(knowledge_based, artifact, tmp_path / "m", relaxation=("range:year", "like:genres"))
    assert model.numbers == ("year", "length")
    assert np.isnan(model.number.numpy()[row["d"]]).all()
    asked = model.constraints({"genres": ["Comedy"]}, {"language": ["de"]}, {"year": (2002, None)})
    none = tf.zeros([1, 0], tf.int32)
    answer = served.recommend(asked, k=tf.constant(5), exclude=none)
    # c is a comedy, but too old; b is new, but no comedy; a is neither; e is German, which is never relaxed, as is d's
    # unknown year, so it comes after a, which more have watched.
    assert answer.items.numpy()[0].tolist() == [row["c"], row["b"], row["a"], row["d"], 0]
    texts = model.explain(answer.relaxed).numpy()[0].tolist()
    both = b"range:year, like:genres"
    assert texts == [b"range:year", b"like:genres", both, both, b""]


@pytest.mark.parametrize(
    ("trainer", "what", "which"),
    [
        (content_based, "genres, years, titles or categories", "items without any"),
        (knowledge_based, "genres or categories", "items without any"),
    ],
)
def test_items_without_any_content_are_refused(tmp_path: Path, trainer: Any, what: str, which: str) -> None:
    artifact = encoded(tmp_path, [])
    with pytest.raises(ShortlistError) as error:
        train(trainer, artifact, tmp_path / "m")
    name = trainer.__name__.rpartition(".")[2]
    assert str(error.value) == (
        f"`{name}` needs items with {what}. Give a table of items with --set data.items=FILE. Received: 5 {which}."
    )


def test_a_network_needs_an_order(tmp_path: Path) -> None:
    rows = [tables.row(f"u{user}", item, 1_000) for user in range(3) for item in "abc"]
    columns = {"language": pa.string(), "length": pa.float64()}
    artifact = tables.encode(tables.write_splits(tmp_path / "s", {"train": rows}, ITEMS, item_columns=columns))
    with pytest.raises(ShortlistError) as error:
        train(content_based, artifact, tmp_path / "m")
    assert str(error.value) == (
        "`content_based` learns what is watched next, and no user has two positives at different times. Give "
        'timestamps, or take form="profile". Received: 9 training rows.'
    )


def test_a_bundle_answers_with_both_as_sources(tmp_path: Path) -> None:
    small_run.write_log(tmp_path)
    size = small_run.ITEMS // 4
    settings = {
        "data.source": f"parquet:{tmp_path / 'log.parquet'}",
        "data.items": str(tmp_path / "items.csv"),
        "workdir": tmp_path / "run",
        "sources": {"content_based": {"hidden_units": [8], "hash_buckets": 20}, "knowledge_based": {}},
        "baselines": {},
        "shortlist.size": 2 * size,
        "shortlist.quota": size,
        "ranker.hidden_units": [4],
        "ranker.epochs": 1,
    }
    pipeline = two_stage(load_config(None, settings))
    done = pipeline.run(until=["Exporter"])
    served = tf.saved_model.load(str(done["Exporter"] / "saved_model"))
    taste = {f"i{item}": item % small_run.TASTES for item in range(small_run.ITEMS)}
    watched = ["i1", "i5", "i9", "i13"]
    answer = answer_of(served, "retrieve", history=[watched], k=[10])
    items = [item.decode() for item in answer["items"].numpy()[0]]
    assert len(set(items)) == 10
    assert np.mean([taste[item] == 1 for item in items]) >= 0.8  # both look for the genre
    assert {"content_based", "knowledge_based"} == {
        name for text in answer["sources"].numpy()[0] for name in text.decode().split("+")
    }
    ranked = answer_of(served, "recommend", history=[watched, ["not known", "", "", ""]], k=[5, 5])
    assert ranked["count"].numpy().tolist() == [5, 5]


def answer_of(served: Any, signature: str, **given: Any) -> dict[str, tf.Tensor]:
    function = served.signatures[signature]
    batch = len(given["history"])
    inputs = {}
    for name, spec in function.structured_input_signature[1].items():
        absent = "" if spec.dtype == tf.string else -1
        value = given.get(name, [absent] * batch if spec.shape.rank == 1 else [[absent]] * batch)
        inputs[name] = tf.constant(value, spec.dtype)
    return function(**inputs)
