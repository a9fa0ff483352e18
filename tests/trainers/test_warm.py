"""A warm start: rows begin as an earlier run learned them, by id and not by place; what was seen is not measured."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run
import tables
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Encoded, Model
from shortlist.models import discover
from shortlist.trainers import content_based, two_tower
from shortlist.trainers.two_stage import defaults, load_config, two_stage

Parts = dict[str, list[tables.Row]]
STILL = 1e-12
"""A learning rate that changes nothing."""


def log(users: int, items: int, events: int, **more: int) -> list[tables.Row]:
    """User u watches items u, u + 1, …; the higher the item, the more often, so that more items change the order."""
    return [
        tables.row(f"u{u}", f"i{(u * 3 + n * n) % items}", 100 * n + u, rating=float(1 + (u + n) % 5), **more)
        for u in range(users)
        for n in range(events)
    ]


def item(n: int, words: str) -> tables.Row:
    return {"item": f"i{n}", "title": f"{words} {n % 3}", "year": 1980 + 5 * n, "genres": [f"g{n % 4}"]}


def encode(folder: Path, train: list[tables.Row], words: str, items: int, **parts: list[tables.Row]) -> Encoded:
    described = [item(n, words) for n in range(items)]
    return tables.encode(tables.write_splits(folder, {"train": train, **parts}, described))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    discover()
    return encode(tmp_path_factory.mktemp("before") / "s", log(8, 11, 5), "some film", 11)


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """More users and items, and other words: the rows of the old ones are others."""
    rows = [*log(8, 11, 5), *log(14, 17, 7)]
    return encode(tmp_path_factory.mktemp("after") / "s", list({(r["user"], r["timestamp"]): r for r in rows}.values()),
                  "another film", 17)  # fmt: skip


def trained(
    name: str, encoded: Encoded, folder: Path, start: tuple[Model, Encoded] | None = None, **settings: Any
) -> Any:
    """The model that the trainer of this name makes, and its artifact."""
    trainer = importlib.import_module(f"shortlist.trainers.{name}")
    config = trainer.Config(**{**defaults(name), **settings})
    folder.mkdir()
    inputs: dict[str, Any] = {"encoded": encoded}
    if start:
        inputs |= {"start": start[0], "earlier": start[1]}
    trainer.train(config, inputs, folder)
    return tf.keras.models.load_model(str(folder / "model.keras"), compile=False), Model(folder, name), config


def by_id(encoded: Encoded, side: str, table: Any) -> dict[str, np.ndarray]:
    ids = (encoded / f"{side}.txt").read_text().split("\n")[:-1]
    return dict(zip(ids, np.asarray(table)[2:], strict=True))


def shared(was: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> None:
    """What both have is the same, and there are others besides."""
    assert len(was) > 5
    assert len(now) > len(was)
    assert [*was] != [*now][: len(was)]  # other rows
    for name, values in was.items():
        np.testing.assert_allclose(now[name], values, rtol=1e-5, atol=1e-7, err_msg=name)


TINY = {"embedding_dim": 6, "epochs": 3, "title": True, "user_id": True, "batch_size": 8, "softmax": "full"}


def test_a_row_of_the_two_tower_begins_where_it_was_whatever_its_place(
    before: Encoded, after: Encoded, tmp_path: Path
) -> None:
    old, start, config = trained("two_tower", before, tmp_path / "old", **TINY)
    still = {**TINY, "epochs": 1, "learning_rate": STILL}
    new, made, _ = trained("two_tower", after, tmp_path / "new", (start, before), **still)
    for name in ("candidate_table", "history_table"):
        shared(by_id(before, "items", getattr(old, name)), by_id(after, "items", getattr(new, name)))
    shared(by_id(before, "users", old.user_table), by_id(after, "users", new.user_table))
    np.testing.assert_allclose(new.time_table, old.time_table, rtol=1e-5)
    was, now = (two_tower.tables(m, EncodedData(e), config) for m, e in ((old, before), (new, after)))
    for name, least in {"genre_table": 4, "title_table": 4, "year_table": 1}.items():  # no bucket has the same bounds
        rows = {label: n for n, label in enumerate(was[name][1])}
        both = [label for label in now[name][1] if label in rows]
        assert len(both) >= least
        for label in both:
            place = list(now[name][1]).index(label)
            np.testing.assert_allclose(now[name][0][place], was[name][0][rows[label]], rtol=1e-5, atol=1e-7)
    assert "another" in now["title_table"][1]
    assert "another" not in was["title_table"][1]
    note = made.read_json("model.json")["notes"][0]
    assert note.startswith(
        "two_tower began with what an earlier run had learned: 11 of the 17 rows of candidate_table,"
    )


def test_wals_goes_on_as_if_it_had_never_stopped(before: Encoded, tmp_path: Path) -> None:
    settings = {"embedding_dim": 3, "solver": "cg"}
    _, start, _ = trained("wals", before, tmp_path / "old", epochs=2, **settings)
    warm, _, _ = trained("wals", before, tmp_path / "warm", (start, before), epochs=1, **settings)
    whole, _, _ = trained("wals", before, tmp_path / "whole", epochs=3, **settings)
    cold, _, _ = trained("wals", before, tmp_path / "cold", epochs=1, **settings)
    np.testing.assert_allclose(warm.user_factors, whole.user_factors, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(warm.item_factors, whole.item_factors, rtol=1e-5, atol=1e-7)
    assert np.abs(cold.user_factors - whole.user_factors).max() > 1e-3


def test_the_content_network_begins_by_what_its_columns_are(before: Encoded, after: Encoded, tmp_path: Path) -> None:
    settings = {"hash_buckets": 5, "hidden_units": (4,), "title_tokens": 6, "epochs": 2, "batch_size": 8}
    old, start, config = trained("content_based", before, tmp_path / "old", **settings)
    still = {**settings, "epochs": 1, "learning_rate": STILL, "table_learning_rate": STILL}
    new, _, _ = trained("content_based", after, tmp_path / "new", (start, before), **still)
    shared(by_id(before, "items", old.own), by_id(after, "items", new.own))
    was, now = (content_based.column_names(EncodedData(e), config) for e in (before, after))
    assert (len(was), len(now)) == (old.num_features, new.num_features)
    assert was != now
    both = [name for name in now if name in was]
    assert {"genre g0", "genre g3", "word film"} <= {*both}
    for name in both:
        n, m = now.index(name), was.index(name)
        np.testing.assert_allclose(new.content_table[n], old.content_table[m], rtol=1e-4, atol=1e-6)
        kernels = new.tower[0].kernel[config.embedding_dim + n], old.tower[0].kernel[config.embedding_dim + m]
        np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new.id_table, old.id_table, rtol=1e-4, atol=1e-6)


def test_vectors_and_biases_of_ratings_begin_where_they_were(before: Encoded, after: Encoded, tmp_path: Path) -> None:
    old, start, _ = trained("biased_mf", before, tmp_path / "old", epochs=2, embedding_dim=3)
    still = {"epochs": 1, "embedding_dim": 3, "learning_rate": STILL}
    new, _, _ = trained("biased_mf", after, tmp_path / "new", (start, before), **still)
    for side in ("user", "item"):
        for name in ("table", "bias"):
            pair = [by_id(e, f"{side}s", getattr(m, f"{side}_{name}")) for e, m in ((before, old), (after, new))]
            shared(*pair)


def test_refuses_layers_of_another_width(before: Encoded, after: Encoded, tmp_path: Path) -> None:
    _, start, _ = trained("two_tower", before, tmp_path / "old", hidden_units=(4,), **TINY)
    with pytest.raises(ShortlistError) as error:
        trained("two_tower", after, tmp_path / "new", (start, before), hidden_units=(5,), **TINY)
    assert str(error.value).startswith(
        "`--warm-start` needs tables of the same widths: `layer 0` of two_tower is of shape (24, 4) in that run, and "
        "of (24, 5) here. Give the settings of that run, such as embedding_dim and hidden_units, or leave "
        "--warm-start out."
    )


def test_refuses_what_was_trained_on_rows_that_are_measured_now(before: Encoded, tmp_path: Path) -> None:
    rows = log(8, 11, 5)
    late = [r for r in rows if r["timestamp"] >= 400]
    now = encode(tmp_path / "s", [r for r in rows if r not in late], "some film", 11, test=late)
    _, start, _ = trained("wals", before, tmp_path / "old", epochs=1, embedding_dim=2)
    with pytest.raises(ShortlistError) as error:
        trained("wals", now, tmp_path / "new", (start, before), epochs=1, embedding_dim=2)
    assert str(error.value).startswith(
        "`--warm-start` must be a run that was not trained on what is measured here: 8 of the 8 rows of test were in "
        "its training part. Split as that run did (split.strategy, split.seed and the shares)"
    )
    again, _, _ = trained("wals", now, tmp_path / "all", (start, before), epochs=1, embedding_dim=2, train_on="all")
    assert again.embedding_dim == 2  # a refit is not measured


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_begins_with_an_earlier_one(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    home = small_run.finished(tmp_path_factory)
    settings = json.loads((home / "run" / "run.json").read_text())["settings"]
    overrides = {
        "data.source": settings["data"]["source"],
        "data.items": settings["data"]["items"],
        "workdir": str(tmp_path / "run"),
        "warm_start": str(home / "run"),
        "sources.wals.embedding_dim": 2,
        "sources.wals.epochs": 1,
        "sources.two_tower.embedding_dim": 4,
        "sources.two_tower.epochs": 1,
        "sources.two_tower.learning_rate": STILL,
        "refit": True,
    }
    pipeline = two_stage(load_config(overrides=overrides))
    warm = {name for name, step in pipeline.steps.items() if "start" in step.inputs}
    assert warm == {f"Trainer.{prefix}{name}" for prefix in ("", "refit.") for name in ("wals", "two_tower")}
    done = pipeline.run(until=["Trainer.two_tower", "Trainer.wals"])
    (old,) = (home / "run" / "artifacts" / "Trainer.two_tower").iterdir()
    models = [
        tf.keras.models.load_model(str(m / "model.keras"), compile=False) for m in (old, done["Trainer.two_tower"].uri)
    ]
    np.testing.assert_allclose(models[1].candidate_table, models[0].candidate_table, rtol=1e-5, atol=1e-7)
    assert (
        done["Trainer.wals"]
        .lineage["inputs"]["start"]["uri"]
        .endswith(next((home / "run/artifacts/Trainer.wals").iterdir()).name)
    )

    with pytest.raises(ShortlistError) as error:
        two_stage(load_config(overrides={**overrides, "sources.wals.embedding_dim": 3}))
    assert str(error.value) == (
        "`wals.embedding_dim` must be that of the run to start from, or no row fits: 2. Set it so (--set "
        "sources.wals.embedding_dim=2), or leave --warm-start out. Received: 3."
    )
    with pytest.raises(ShortlistError, match="`--warm-start` must be the folder of a finished run, which is kept"):
        two_stage(load_config(overrides={**overrides, "warm_start": str(tmp_path)}))
