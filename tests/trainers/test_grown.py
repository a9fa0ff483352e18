"""A trained retriever for another catalogue: what it said stays to the bit, and a new item is what its content says."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tables
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Encoded, Model, Splits
from shortlist.components.refresh_gen import RefreshConfig, RefreshGen
from shortlist.components.transform import Transform, TransformConfig
from shortlist.models import discover
from shortlist.models.two_tower import TwoTower
from shortlist.trainers import _grown
from shortlist.trainers._grown import grow
from shortlist.trainers.refresh import OF_DATA
from shortlist.trainers.two_stage import defaults, model_names

USERS, ITEMS = 16, 14
GENRES = ("Comedy", "Crime")
WORDS = ("funny", "dark")
START = 1_500_000_000


@dataclass
class World:
    """A trained catalogue `before`, today's (`now`), and where models are written."""

    before: Encoded
    now: Encoded
    folder: Path

    def made(self, name: str, built_on: dict[str, Any] | None = None, **settings: Any) -> tuple[Model, Model, Any]:
        """A model trained on `before`, the same for `now`, and its settings."""
        trainer = importlib.import_module(f"shortlist.trainers.{name}")
        config = trainer.Config(
            **{**defaults(name), **({"epochs": 2} if "epochs" in defaults(name) else {}), **settings}
        )
        old, new = (Model(self.folder / f"{name}.{n}.{len([*self.folder.iterdir()])}", name) for n in ("old", "new"))
        for model in (old, new):
            model.uri.mkdir()
        bases = {base: pair[0] for base, pair in (built_on or {}).items()}
        trainer.train(config, {"encoded": self.before, **({"of": bases} if bases else {})}, old.uri)
        bases = {base: pair[1] for base, pair in (built_on or {}).items()}
        inputs = {"encoded": self.now, **({"of": bases} if bases else {})}
        if name in OF_DATA:
            trainer.train(config, inputs, new.uri)
        else:
            grow(config, {**inputs, "start": old, "earlier": self.before}, new.uri)
        return old, new, config


def item_row(n: int, genre: int | None = None) -> tables.Row:
    kind = n % 2 if genre is None else genre
    row = {"item": f"i{n}", "title": f"{WORDS[kind]} film {n}", "year": 1990 + 10 * kind}
    return {**row, "genres": [GENRES[kind]], "language": ("en", "fr")[kind], "length": 60.0 + n}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    parts: dict[str, list[tables.Row]] = {"train": [], "test": []}
    for user in range(USERS):
        own = rng.permutation([i for i in range(ITEMS) if i % 2 == user % 2])[:6]
        for n, i in enumerate(own):
            more = {"rating": 3.0 + float(rng.integers(0, 3)), "context_place": ("home", "away")[user % 2]}
            parts["train" if n < 5 else "test"].append(
                tables.row(f"u{user}", f"i{i}", START + 10_000 * n + user, **more)
            )
    columns = {"language": pa.string(), "length": pa.float64()}
    splits = tables.write_splits(folder / "s", parts, [item_row(n) for n in range(ITEMS)], item_columns=columns)
    before = tables.encode(splits)
    today = [item_row(n) for n in range(ITEMS + 2) if n != 4]  # i14 and i15 are new, i4 is removed
    schema = pa.schema([*tables.ITEMS, pa.field("language", pa.string()), pa.field("length", pa.float64())])
    pq.write_table(pa.Table.from_pylist(today, schema), folder / "today.parquet")
    log = {"user": ["new", "new", "new", "u0"], "item": ["i14", "i0", "i2", "i14"]}
    log |= {"timestamp": START + 100_000 + np.arange(4), "rating": [5.0] * 4}
    pq.write_table(pa.table(log), folder / "log.parquet")
    out, encoded = Splits(folder / "r", "r"), Encoded(folder / "encoded", "now")
    out.uri.mkdir()
    encoded.uri.mkdir()
    config = RefreshConfig(items=folder / "today.parquet", interactions=folder / "log.parquet")
    RefreshGen(config).run(out.uri, splits, before)
    Transform(TransformConfig()).run(encoded.uri, out)
    (folder / "models").mkdir()
    discover()
    return World(before, encoded, folder / "models")


def queries(data: EncodedData) -> dict[str, tf.Tensor]:
    """Every user of the training part with their history there, and one without any."""
    rows = data.rows("train")
    histories = [rows["item"][rows["user"] == user] for user in range(2, USERS + 2)] + [np.zeros(0, np.int32)]
    history = np.array([np.pad(h, (0, 8 - len(h))) for h in histories], np.int32)
    count = len(history)
    return {
        "user": tf.constant([*range(2, USERS + 2), 1], tf.int32),
        "history": tf.constant(history),
        "history_time": tf.constant(np.where(history > 0, START + np.arange(8), 0), tf.int64),
        "time": tf.fill([count], tf.constant(START + 200_000, tf.int64)),
        "context_place": tf.constant([2 + n % 2 for n in range(count)], tf.int32),
    }


def scores(model: Model, query: dict[str, tf.Tensor]) -> np.ndarray:
    served = tf.saved_model.load(str(model / "serving"))
    return served.score_items(query).numpy()


SETTINGS: dict[str, dict[str, Any]] = {
    "two_tower": {"embedding_dim": 8, "title": True, "user_id": True, "softmax": "mixed", "negatives": 4},
    "wals": {"embedding_dim": 4},
    "ease": {"neighbours": None},
    "item_knn": {"neighbours": 5},
    "fresh": {"popularity": 1.0},
    "popularity": {"window_days": 30},
    "content_based": {"hash_buckets": 4, "hidden_units": (8,)},
    "camf": {"embedding_dim": 3},
    "biased_mf": {"embedding_dim": 3},
    "post_filter": {"of": "wals"},
    "neighbours": {"of": "wals"},
    "similar_users": {"of": "wals"},
    "hybrid": {"of": ("wals",)},
}


@pytest.mark.parametrize("name", sorted({*model_names()} - {"weighted_logistic", "table"}))
def test_what_a_model_says_of_the_items_it_knew_stays(world: World, name: str) -> None:
    settings = SETTINGS.get(name, {})
    of = None
    if "of" in settings:
        late = {"leave_out": 0.2} if name == "hybrid" else {}
        of = {"wals": world.made("wals", embedding_dim=4, **late)}
    old, new, _ = world.made(name, of, **settings)
    before, now = EncodedData(world.before), EncodedData(world.now)
    query = queries(before)
    was, found = scores(old, query), scores(new, query)
    assert found.shape == (USERS + 1, now.num_items)
    if name in ("hybrid", "post_filter"):  # they standardize over the catalogue, or cut a shortlist of it
        order, again = (np.argsort(-s[:, : before.num_items], kind="stable") for s in (was, found))
        np.testing.assert_array_equal(order[:-1, :5], again[:-1, :5])
    else:
        np.testing.assert_allclose(found[:, : before.num_items], was, rtol=1e-5, atol=1e-6)
    assert not np.isnan(found).any()


def test_ease_with_the_largest_weights_alone(world: World) -> None:
    old, new, _ = world.made("ease", neighbours=3)
    query = queries(EncodedData(world.before))
    found = scores(new, query)
    np.testing.assert_array_equal(found[:, :-2], scores(old, query))
    assert not found[:, -2:].any()


@pytest.mark.parametrize(
    ("name", "form"), [("two_tower", {}), ("content_based", {}), ("content_based", {"form": "profile"})]
)
def test_a_new_item_stands_with_those_of_its_genre_year_and_words(
    world: World, name: str, form: dict[str, str]
) -> None:
    _, new, _ = world.made(name, **{**SETTINGS[name], "epochs": 40, **form})
    data = EncodedData(world.now)
    ids = data.items["id"].tolist()
    model = tf.saved_model.load(str(new / "serving"))
    vectors = tf.math.l2_normalize(model.item_vectors(), axis=1).numpy()
    for item in ("i14", "i15"):
        cosine = vectors @ vectors[ids.index(item)]
        alike = [cosine[ids.index(f"i{n}")] for n in range(ITEMS) if n % 2 == int(item[1:]) % 2]
        other = [cosine[ids.index(f"i{n}")] for n in range(ITEMS) if n % 2 != int(item[1:]) % 2]
        assert np.mean(alike) > np.mean(other) + 0.2
    query = queries(data)
    found = model.score_items(query).numpy()[:-1]
    of_user = {row: int(u[1:]) for u, row in zip(data.users["id"], data.users["user"], strict=True) if u != "new"}
    for row, n in of_user.items():
        liked, not_liked = found[row - 2, ids.index(f"i{14 + n % 2}")], found[row - 2, ids.index(f"i{15 - n % 2}")]
        assert liked > not_liked


def test_a_new_item_in_a_history_stands_where_those_nearest_by_content_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_grown, "NEAREST", 2)
    monkeypatch.setattr(_grown, "BLOCK", 1)
    model = TwoTower(num_items=8, embedding_dim=3, num_genres=3)
    genres = [[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [2, 1, 0], [3, 1, 0], [0, 1, 4]]
    model.set_content(np.array(genres))
    model.content.genre_table.assign(np.eye(3))
    model.trained.assign([0, 0, 1, 1, 1, 0, 0, 0])  # item 5 was in no history's way when it was trained
    before = model.history_table.numpy()
    _grown._watched_like(model, 6)
    after = model.history_table.numpy()
    np.testing.assert_array_equal(after[:6], before[:6])
    np.testing.assert_allclose(after[6], (before[2] + before[4]) / 2, rtol=1e-6)  # cosines .95 and .89, then .32
    np.testing.assert_allclose(after[7], (before[3] + before[4]) / 2, rtol=1e-6)  # .24 and .17, then 0


@pytest.mark.parametrize("weighed", [{}, {"confidence": "linear", "alpha": 2.0}])
def test_wals_solves_for_new_users_and_for_the_new_items_that_somebody_watched(
    world: World, weighed: dict[str, Any]
) -> None:
    old, new, config = world.made("wals", embedding_dim=4, **weighed)
    before, now = EncodedData(world.before), EncodedData(world.now)
    was, found = (tf.keras.models.load_model(str(m / "model.keras")) for m in (old, new))
    n_items, n_users = before.num_items, before.num_users
    np.testing.assert_array_equal(found.item_factors[:n_items], was.item_factors)
    np.testing.assert_array_equal(found.item_gramian, was.item_gramian)
    changed = {now.users["id"].tolist()[i] for i in np.flatnonzero(np.isin(now.users["user"], _changed(was, found)))}
    assert changed == {"u0", "new"}
    rows = now.rows(*now.artifact.known)
    r = np.where(np.isnan(rows["rating"]), 1, rows["rating"]) / rows["rating"].mean()
    alone = now.items["id"].tolist().index("i14")
    watched = rows["item"] == alone
    c = 1 + 2.0 * r if weighed else np.ones(len(r))
    users = np.asarray(found.user_factors)
    trained = np.concatenate([np.asarray(was.user_factors), np.zeros((1, 4), np.float32)])
    expected = solved(config, trained, rows["user"][watched], c[watched], trained.T @ trained, n_users + 1)
    np.testing.assert_allclose(found.item_factors[alone], expected, rtol=1e-3, atol=1e-5)
    assert not np.any(found.item_factors[now.items["id"].tolist().index("i15")])
    mine = rows["user"] == n_users  # the new one's row is behind the others
    items = np.asarray(found.item_factors)
    expected = solved(config, items, rows["item"][mine], c[mine], np.asarray(was.item_gramian), n_items)
    np.testing.assert_allclose(users[n_users], expected, rtol=1e-3, atol=1e-5)


def solved(config: Any, other: np.ndarray, cells: np.ndarray, c: np.ndarray, gram: np.ndarray, size: int) -> np.ndarray:
    """The factors of a row with these cells, by the normal equations."""
    v, w0 = other[cells].astype(np.float64), config.unobserved_weight
    ridge = config.l2 * (len(cells) + w0 * size) ** config.frequency_exponent
    left = w0 * gram + (v * (c - w0)[:, np.newaxis]).T @ v + ridge * np.eye(v.shape[1])
    return np.linalg.solve(left, v.T @ c)


def _changed(was: Any, found: Any) -> np.ndarray:
    old, new = np.asarray(was.user_factors), np.asarray(found.user_factors)
    same = [n < len(old) and np.array_equal(old[n], new[n]) for n in range(len(new))]
    return np.flatnonzero(~np.array(same))


def test_refuses_rows_that_are_others_now(world: World, tmp_path: Path) -> None:
    old, _, config = world.made("wals", embedding_dim=4)
    inputs = {"encoded": world.before, "start": old, "earlier": world.now}
    with pytest.raises(ShortlistError, match="`run` must have been made by this version of shortlist: its items have"):
        grow(config, inputs, tmp_path)


def test_refuses_a_model_behind_a_split_by_context(world: World, tmp_path: Path) -> None:
    split = {"side": "item", "alpha": 0.99, "min_ratings": 2}
    with pytest.raises(ShortlistError, match="`biased_mf` behind a split by context cannot be refreshed"):
        world.made("biased_mf", embedding_dim=2, split=split)
