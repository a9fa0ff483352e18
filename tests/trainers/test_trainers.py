"""What every trainer does alike, what each is given, and the configuration that names them."""

import importlib
import json
from pathlib import Path
from typing import Any

import fixed_models
import numpy as np
import pytest
import tables
import tensorflow as tf
import tomllib

from shortlist import ShortlistError
from shortlist.components._config import Config, parse
from shortlist.components._first_stage import ShortlistConfig, retrieve
from shortlist.components._queries import EncodedData, build_queries
from shortlist.components.artifacts import Artifact, Encoded
from shortlist.components.candidate_generator import CandidateGenerator
from shortlist.components.metrics import ranking_metrics
from shortlist.components.pipeline import Pipeline
from shortlist.models import discover
from shortlist.trainers.two_stage import CONFIGS, RANKER, defaults, load_config, model_names, parse_overrides, two_stage

TINY: dict[str, dict[str, Any]] = {
    "popularity": {"window_days": 400},
    "item_knn": {"neighbours": 5},
    "ease": {"l2": 2.0, "neighbours": 5},
    "wals": {"embedding_dim": 3, "epochs": 2},
    "two_tower": {"embedding_dim": 4, "epochs": 2, "batch_size": 64, "user_id": True, "hidden_units": [4]},
    RANKER: {"hidden_units": [4], "epochs": 2, "batch_size": 64},
}
RANDOM = ("wals", "two_tower", RANKER)
RETRIEVERS = [name for name in TINY if name != RANKER]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    pipeline = Pipeline(tmp_path_factory.mktemp("trainers"))
    parts = fixed_models.random_parts(7, users=20)
    for n, r in enumerate(r for rows in parts.values() for r in rows):
        r["rating"] = 1.0 + n % 5
    encoded = fixed_models.encoded(pipeline, parts)
    sources = {n: pipeline.add(fixed_models.FixedIndex(n, seed), encoded) for seed, n in enumerate(("left", "right"))}
    pipeline.add(CandidateGenerator(ShortlistConfig(size=12, quota=8)), encoded, sources)
    run = pipeline.run()
    return {"encoded": run["Transform"], "candidates": run["CandidateGenerator"]}


def train(model: str, inputs: dict[str, Any], workdir: Path, **settings: Any) -> Path:
    module = importlib.import_module(f"shortlist.trainers.{model}")
    workdir.mkdir(parents=True)
    module.train(parse(module.Config, {**TINY[model], **settings}), inputs, workdir)
    return workdir


def answers(model: str, workdir: Path, inputs: dict[str, Any], split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """What the saved functions answer, and what the model itself does once it is loaded."""
    discover()
    loaded = tf.keras.models.load_model(str(workdir / "model.keras"))
    served = tf.saved_model.load(str(workdir / "serving"))
    if model == RANKER:
        with np.load(inputs["candidates"] / f"{split}.npz") as table:
            features = tf.constant(table["features"])
        return served.score(features).numpy(), loaded.odds(features).numpy()
    _, batch = next(build_queries(EncodedData(inputs["encoded"]), split).batches(1000))
    query = {name: tf.constant(value) for name, value in batch.items() if name != "exclude"}
    return served.score_items(query).numpy(), loaded.score_items(query).numpy()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Artifact]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {model: train(model, inputs, folder / model, seed=5) for model in TINY}


@pytest.mark.parametrize("model", list(TINY))
def test_the_seed_decides(tmp_path: Path, inputs: Any, trained: dict[str, Path], model: str) -> None:
    scores, _ = answers(model, trained[model], inputs)
    assert np.isfinite(scores).all()
    assert np.unique(scores).size > 3
    again, _ = answers(model, train(model, inputs, tmp_path / "again", seed=5), inputs)
    assert again.tobytes() == scores.tobytes()
    other, _ = answers(model, train(model, inputs, tmp_path / "other", seed=6), inputs)
    assert np.array_equal(other, scores) == (model not in RANDOM)


@pytest.mark.parametrize("model", list(TINY))
def test_what_is_saved(inputs: Any, trained: dict[str, Path], model: str) -> None:
    served, loaded = answers(model, trained[model], inputs)
    np.testing.assert_allclose(served, loaded, rtol=1e-5, atol=1e-6)
    if model in ("wals", "two_tower"):
        parts = tf.saved_model.load(str(trained[model] / "serving"))
        assert parts.item_vectors().shape == (served.shape[1], TINY[model]["embedding_dim"])
    info = json.loads((trained[model] / "model.json").read_text())
    assert (info["model"], info["trained_on"]) == (model, "train")
    cls = importlib.import_module(f"shortlist.trainers.{model}").Config
    assert parse(cls, info["config"]) == parse(cls, {**TINY[model], "seed": 5})
    epochs = TINY[model].get("epochs")
    assert ("loss" in info["history"]) == bool(epochs)
    assert {len(values) for values in info["history"].values()} <= {epochs}
    if model == RANKER:
        assert info["notes"] == [
            "Positives weigh their rating, a proxy for the watch time that the data does not have."
        ]
    events = [str(path) for path in (trained[model] / "logs").rglob("events.out.tfevents.*")]
    assert bool(events) == bool(epochs)
    logged = [
        (event.step, value.tag)
        for path in events
        for event in tf.compat.v1.train.summary_iterator(path)
        for value in event.summary.value
    ]
    assert all((step, "epoch_loss") in logged for step in range(epochs or 0))


def test_what_is_trained_on(tmp_path: Path, inputs: Any) -> None:
    """Popularity's counts are those of the named rows."""
    data = EncodedData(inputs["encoded"])
    for train_on, names in (("train", ("train",)), ("all", Encoded.NAMES)):
        folder = train("popularity", inputs, tmp_path / train_on, train_on=train_on, window_days=None)
        count = np.bincount(data.rows(*names)["item"], minlength=data.num_items)
        scores, _ = answers("popularity", folder, inputs)
        np.testing.assert_array_equal(scores[:, 2:], np.tile(count[2:], (20, 1)))
        assert json.loads((folder / "model.json").read_text())["trained_on"] == train_on


def test_a_ranker_of_everything_takes_the_other_candidates_too(tmp_path: Path, inputs: Any) -> None:
    one, _ = answers(RANKER, train(RANKER, inputs, tmp_path / "a"), inputs)
    everything, _ = answers(RANKER, train(RANKER, inputs, tmp_path / "b", train_on="all"), inputs)
    assert not np.allclose(one, everything)


def test_weights_of_positives_can_be_left_out(tmp_path: Path, inputs: Any) -> None:
    longer = {"epochs": 15, "learning_rate": 0.02}
    folder = train(RANKER, inputs, tmp_path / "unweighted", weighted=False, **longer)
    assert json.loads((folder / "model.json").read_text())["notes"] == []
    weighted, _ = answers(RANKER, train(RANKER, inputs, tmp_path / "weighted", **longer), inputs)
    plain, _ = answers(RANKER, folder, inputs)
    assert weighted.mean() > 1.3 * plain.mean()  # ratings of 1 to 5 in the place of 1 make positives likelier


def ndcg(model: str, workdir: Path, inputs: Any) -> float:
    """NDCG@10 on validation of what was saved."""
    queries = build_queries(EncodedData(inputs["encoded"]), "validation")
    if model == RANKER:
        with np.load(inputs["candidates"] / "validation.npz") as table:
            odds, _ = answers(model, workdir, inputs, "validation")
            order = np.argsort(np.where(table["items"] >= 2, -odds, np.inf), axis=1, kind="stable")
            ranked = np.take_along_axis(table["items"], order, axis=1)
    else:
        served = tf.saved_model.load(str(workdir / "serving"))
        ranked = retrieve(served.score_items, queries, 10, model)
    return float(ranking_metrics(ranked, queries.targets.offsets, queries.targets.values, (10,))["ndcg@10"].mean())


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("wals", {"patience": 2}),
        ("two_tower", {"patience": 2, "learning_rate": 0.5}),
        (RANKER, {"patience": 1, "learning_rate": 0.05}),
    ],
)
def test_patience_stops_early_and_keeps_the_best(tmp_path: Path, inputs: Any, model: str, settings: Any) -> None:
    folder = train(model, inputs, tmp_path / "m", **{**settings, "epochs": 40})
    history = json.loads((folder / "model.json").read_text())["history"]
    values = history["val_ndcg@10"]
    assert len(values) < 40
    assert len(values) == len(history["loss"]) == np.argmax(values) + 1 + settings["patience"]
    assert values[-1] <= max(values)
    assert ndcg(model, folder, inputs) == pytest.approx(max(values))


@pytest.mark.parametrize("model", RANDOM)
def test_patience_needs_a_validation(tmp_path: Path, inputs: Any, model: str) -> None:
    parts = fixed_models.random_parts(7, shares=(5, 3, 0, 2))
    encoded = tables.encode(tables.write_splits(tmp_path / "s", parts))
    given = {**inputs, "encoded": encoded}
    with pytest.raises(
        ShortlistError, match=r"^`patience` needs a positive in validation to stop by\. .* Received: none"
    ):
        train(model, given, tmp_path / "m", patience=1)


def test_two_tower_learns_what_comes_next(tmp_path: Path) -> None:
    """On a ring, walked in one direction, the next item follows from the last one."""
    ring, users = 30, 60
    parts: dict[str, list[tables.Row]] = {"train": [], "test": []}
    for user in range(users):
        for step in range(13):
            row = tables.row(f"u{user:02}", f"i{(7 * user + step) % ring:02}", 1_500_000_000 + 3600 * step)
            parts["test" if step == 12 else "train"].append(row)
    encoded = tables.encode(tables.write_splits(tmp_path / "s", parts))
    settings = {"embedding_dim": 32, "history_length": 1, "hidden_units": [], "epochs": 30, "learning_rate": 0.5}
    settings |= {"user_id": False, "content": False, "request_time": False, "softmax": "full", "dropout": 0.0}
    folder = train("two_tower", {"encoded": encoded}, tmp_path / "m", **settings)
    queries = build_queries(EncodedData(encoded), "test")
    served = tf.saved_model.load(str(folder / "serving"))
    ranked = retrieve(served.score_items, queries, 1, "two_tower")
    assert np.mean(ranked[:, 0] == queries.targets.values) > 0.95


def test_two_tower_needs_an_order(tmp_path: Path) -> None:
    rows = [tables.row(f"u{user}", f"i{item}", 1_000) for user in range(3) for item in range(4)]
    encoded = tables.encode(tables.write_splits(tmp_path / "s", {"train": rows}))
    with pytest.raises(ShortlistError) as error:
        train("two_tower", {"encoded": encoded}, tmp_path / "m")
    assert str(error.value) == (
        "`two_tower` learns what is watched next, and no user has two positives at different times. Give timestamps, "
        "or use wals. Received: 12 training rows."
    )


@pytest.mark.parametrize("model", RETRIEVERS)
def test_no_positive_is_refused(tmp_path: Path, model: str) -> None:
    rows = [tables.row("u", f"i{n}", n, rating=2.0) for n in range(4)]
    encoded = tables.encode(tables.write_splits(tmp_path / "s", {"train": rows}, positive_threshold=4.0))
    with pytest.raises(ShortlistError, match=r"^`train` must hold a positive, .* Received: no positive among 4 rows"):
        train(model, {"encoded": encoded}, tmp_path / "m")


# --- configuration --------------------------------------------------------------------------------------------------


def config_class(model: str) -> type[Config]:
    return importlib.import_module(f"shortlist.trainers.{model}").Config


def test_every_model_has_a_trainer_with_defaults() -> None:
    assert set(model_names()) == {cls.registered_name for cls in discover().values()} == set(TINY)
    for model in model_names():
        values = tomllib.loads((CONFIGS / f"{model}.toml").read_text())
        assert values == defaults(model)
        cls = config_class(model)
        assert set(values) <= set(cls.model_fields)
        assert parse(cls, values) == cls()  # the file and the class say the same


def test_shipped_defaults_reach_the_steps() -> None:
    config = load_config()
    assert list(config.sources) == ["wals", "two_tower"]
    assert list(config.baselines) == ["popularity", "popularity_recent", "item_knn"]
    steps = two_stage(config).steps
    for model in ("wals", "two_tower", RANKER):
        assert steps[f"Trainer.{model}"].component.config == config_class(model)()
    recent = steps["Trainer.popularity_recent"].component
    assert recent.config == config_class("popularity")(window_days=1095)
    assert recent.run_fn == "shortlist.trainers.popularity:train"
    assert steps["CandidateGenerator"].component.config == ShortlistConfig(size=300, quota=300)


def test_building_runs_nothing(tmp_path: Path) -> None:
    two_stage(load_config(overrides={"workdir": tmp_path / "run", "refit": True}))
    assert not (tmp_path / "run").exists()


def test_a_file_merges_and_single_settings_come_last(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        "seed = 9\n[split]\ntest = 0.2\n[sources.mine]\nmodel = 'wals'\nembedding_dim = 7\nseed = 1\n"
        "[sources.popular]\nmodel = 'popularity'\n[ranker]\nepochs = 3\n[evaluation]\nseed = 4\n"
    )
    config = load_config(tmp_path / "c.toml", {"sources.mine.embedding_dim": 8, "split.seed": 2, "ranker.dropout": 0.0})
    assert (config.split.test, config.split.validation, config.split.seed) == (0.2, 0.1, 2)
    assert list(config.sources) == ["mine", "popular"]  # the table replaces the shipped one
    assert list(config.baselines) == ["popularity", "popularity_recent", "item_knn"]
    steps = two_stage(config).steps
    mine, popular = (steps[f"Trainer.{name}"].component for name in ("mine", "popular"))
    assert mine.config == config_class("wals")(embedding_dim=8, seed=1)
    assert popular.config == config_class("popularity")(seed=9)
    assert steps[f"Trainer.{RANKER}"].component.config == config_class(RANKER)(epochs=3, dropout=0.0, seed=9)
    evaluation = steps["Evaluator"].component.config
    assert (evaluation.seed, evaluation.run_seed, evaluation.cutoffs) == (4, 9, (10, 100))


def test_baselines_are_replaced_too(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[baselines.popularity]\n")
    assert list(load_config(tmp_path / "c.toml").baselines) == ["popularity"]
    added = load_config(overrides={"sources.second.model": "wals", "sources.second.embedding_dim": 3})
    assert list(added.sources) == ["wals", "two_tower", "second"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"splt.test": 0.2}, "`splt` is not a setting of the configuration. Did you mean `split`?"),
        ({"split.tset": 0.2}, "`split.tset` is not a setting of the configuration. Did you mean `test`?"),
        ({"sources.wals.embeding_dim": 3}, "`embeding_dim` is not a setting of wals (wals). Did you mean"),
        (
            {"ranker.epoch": 3},
            "`epoch` is not a setting of weighted_logistic (weighted_logistic). Did you mean `epochs`?",
        ),
        (
            {"sources.two_tower.epochs": 0},
            "`epochs` of two_tower (two_tower): Input should be greater than or equal to",
        ),
        (
            {"sources.x.model": "wal"},
            "`model` must be one of ease, item_knn, popularity, two_tower, wals, weighted_logistic.",
        ),
        ({"seed.x": 1}, "`seed.x` is not a setting: `seed` is a value. Leave the rest out."),
        ({"sources": {}}, "`sources` of the configuration: "),
        ({"sources.wals": 3}, "`sources.wals` must be a table of settings. Received: 3."),
        ({"sources": 3}, "`sources` must be a table of settings. Received: 3."),
        (
            {"shortlist.quota": {"wals": 3}},
            "`shortlist.quota` must name exactly the sources wals, two_tower. Received: wa",
        ),
        ({"sources.union.model": "wals"}, "`sources.union` needs a name of its own"),
        ({"baselines.wals.epochs": 1}, "`baselines.wals` needs a name of its own"),
        ({"ranker.model": "wals"}, "`ranker.model` must be weighted_logistic. Received: 'wals'."),
        (
            {"sources.x.model": RANKER},
            "`sources.x.model` must be a retriever. Received: 'weighted_logistic', a ranker.",
        ),
        (
            {"sources.wals.train_on": "all"},
            "`sources.wals.train_on` must be train: what has seen the other parts cannot",
        ),
        ({"baselines.item_knn.train_on": "all"}, "`baselines.item_knn.train_on` must be train: "),
        ({"ranker.train_on": "all"}, "`ranker.train_on` must be train: "),
        ({"transform.fit_on": "all"}, "`transform.fit_on` must be train: "),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ShortlistError) as error:
        load_config(overrides=overrides)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["seed = ", "\xff"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.toml").write_bytes(content.encode("latin-1"))
    with pytest.raises(ShortlistError, match=r"^`--config` must be a TOML file that can be read: .* Received: "):
        load_config(tmp_path / "c.toml")
    with pytest.raises(ShortlistError, match=r"must be a TOML file that can be read: No such file or directory"):
        load_config(tmp_path / "none.toml")


def test_overrides_as_text() -> None:
    pairs = ["a.b=1", "c=x y", "d=[1, 2]", "e=true", 'f="1"', "g=a=b", " h = 2.5"]
    expected = {"a.b": 1, "c": "x y", "d": [1, 2], "e": True, "f": "1", "g": "a=b", "h": 2.5}
    assert parse_overrides(pairs) == expected
    for wrong in ("a", "=1", " =1"):
        with pytest.raises(ShortlistError, match=r"`--set` takes NAME=VALUE, such as .* Received: "):
            parse_overrides([wrong])
