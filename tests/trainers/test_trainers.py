"""What every trainer does alike, what each is given, and the configuration that names them.

Past 400 lines because the ranker is given more than the others, and each part of it is told by hand.
"""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import fixed_models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
import tables
import tensorflow as tf
import tomllib

from shortlist import ShortlistError
from shortlist.components._config import Config, parse
from shortlist.components._first_stage import ShortlistConfig, retrieve
from shortlist.components._progress import console
from shortlist.components._queries import EncodedData, build_queries
from shortlist.components.artifacts import Artifact, Candidates, Encoded, Model
from shortlist.components.candidate_generator import CandidateGenerator
from shortlist.components.metrics import ranking_metrics
from shortlist.components.pipeline import Pipeline
from shortlist.models import discover
from shortlist.models._layers import last_n
from shortlist.models._ranking_features import group_of
from shortlist.trainers import camf, post_filter, weighted_logistic
from shortlist.trainers._ratings import ratings
from shortlist.trainers.two_stage import CONFIGS, RANKER, defaults, load_config, model_names, parse_overrides, two_stage
from shortlist.trainers.weighted_logistic import PROXY, UNSHOWN

TINY: dict[str, dict[str, Any]] = {
    "popularity": {"window_days": 400},
    "item_knn": {"neighbours": 5},
    "ease": {"l2": 2.0, "neighbours": 5},
    "wals": {"embedding_dim": 3, "epochs": 2},
    "content_based": {"hidden_units": [4], "epochs": 2, "batch_size": 64, "hash_buckets": 5, "embedding_dim": 3},
    "knowledge_based": {"likes": 2},
    "biased_mf": {"embedding_dim": 3, "epochs": 2, "batch_size": 64},
    "camf": {"embedding_dim": 3, "epochs": 2, "batch_size": 64, "deviation": "CI"},
    "two_tower": {"embedding_dim": 4, "epochs": 2, "batch_size": 64, "user_id": True, "hidden_units": [4]},
    "neighbours": {"history_length": 4},
    "fresh": {"half_life_days": 2.0, "popularity": 1.0},
    "table": {"path": Path(__file__).parent / "ranking.csv"},
    "similar_users": {"neighbours": 5, "history_length": 4},
    "post_filter": {"candidates": 20, "smoothing": 2.0},
    "hybrid": {"of": ["wals", "ease"], "embedding_dim": 3, "hidden_units": [5], "epochs": 2, "batch_size": 8},
    RANKER: {"hidden_units": [4], "epochs": 2, "batch_size": 64},
}
OF: dict[str, tuple[str, ...]] = {
    "neighbours": ("wals",),
    "similar_users": ("wals",),
    "post_filter": ("wals",),
    "hybrid": ("wals", "ease"),
}
"""What each builds on, trained before it."""
RANDOM = ("wals", "content_based", "biased_mf", "camf", "two_tower", "hybrid", RANKER)
WITH_CONTEXT = ("camf", "post_filter")
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
    bases: dict[str, Model] = {}
    for name in OF.get(model, ()) if "of" not in inputs else ():
        own = {"leave_out": module.Config().held_back} if model == "hybrid" else {}
        bases[name] = Model(train(name, inputs, workdir / name, **own), "")
    if model in WITH_CONTEXT:
        inputs = {**inputs, "encoded": with_context(inputs["encoded"], workdir.with_name(f"{workdir.name}_data"))}
    module.train(parse(module.Config, {**TINY[model], **settings}), {"of": bases, **inputs}, workdir)
    return workdir


def with_context(encoded: Encoded, folder: Path) -> Encoded:
    """The same data with a dimension `company` of two conditions, which a fourth of the rows doesn't have."""
    shutil.copytree(encoded.uri, folder)
    for name in encoded.names:
        part = pq.read_table(encoded / f"{name}.parquet")
        rows = np.arange(len(part), dtype=np.int32)
        company = np.array([0, 2, 3, 3], np.int32)[rows % 4]
        pq.write_table(part.append_column("context_company", pa.array(company)), folder / f"{name}.parquet")
    set_conditions(folder, 4)
    return Encoded(folder, "context")


def set_conditions(folder: Path, size: int) -> None:
    state = json.loads((folder / "state.json").read_text())
    state["request"] = {"context_company": {"kind": "category", "size": size, "file": "context_company"}}
    (folder / "state.json").write_text(json.dumps(state))


def answers(model: str, workdir: Path, inputs: dict[str, Any], split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """What the saved functions answer, and what the model itself does once it is loaded."""
    discover()
    loaded = tf.keras.models.load_model(str(workdir / "model.keras"))
    served = tf.saved_model.load(str(workdir / "serving"))
    if model == RANKER:
        with np.load(inputs["candidates"] / f"{split}.npz") as table:
            given = [tf.constant(table[name]) for name in ("features", "items", "history")]
        return served.score(*given)["odds"].numpy(), loaded.score(*given)["odds"].numpy()
    _, batch = next(build_queries(EncodedData(inputs["encoded"]), split).batches(1000))
    query = {name: tf.constant(value) for name, value in batch.items() if name != "exclude"}
    if model in WITH_CONTEXT:
        query["context_company"] = tf.range(len(query["user"])) % 4
    return served.score_items(query).numpy(), loaded.score_items(query).numpy()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Artifact]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {model: train(model, inputs, folder / model, seed=5) for model in TINY}


@pytest.mark.parametrize("model", list(TINY))
def test_the_seed_decides(tmp_path: Path, inputs: Any, trained: dict[str, Path], model: str) -> None:
    scores, _ = answers(model, trained[model], inputs)
    assert np.isfinite(scores[~np.isneginf(scores)]).all()
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
        assert info["notes"] == [PROXY, UNSHOWN]
        assert (info["expected_watch_time"], info["learned_from_shown"]) == (None, False)
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


def test_a_ranker_of_everything_takes_the_other_candidates_too(
    tmp_path: Path, inputs: Any, trained: dict[str, Path]
) -> None:
    one, _ = answers(RANKER, trained[RANKER], inputs)
    everything, _ = answers(RANKER, train(RANKER, inputs, tmp_path / "b", train_on="all", seed=5), inputs)
    assert not np.allclose(one, everything)


# --- the ranker's own settings ----------------------------------------------------------------------------------------

GROUPS = ("retriever", "history", "impressions", "content", "example_age")
CONSTANT = {"hidden_units": 0, "without": GROUPS, "epochs": 1, "dropout": 0.0, "l2": 0.0}


@pytest.fixture(scope="module")
def shown_parts() -> dict[str, list[tables.Row]]:
    return fixed_models.with_impressions(fixed_models.random_parts(7, users=20))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, shown_parts: Any) -> dict[str, Artifact]:
    """Of a log with impressions and watch times."""
    pipeline = Pipeline(tmp_path_factory.mktemp("shown"))
    encoded = fixed_models.encoded(pipeline, shown_parts)
    sources = {"left": pipeline.add(fixed_models.FixedIndex("left", 0), encoded)}
    pipeline.add(CandidateGenerator(ShortlistConfig(size=12, quota=12)), encoded, sources)
    run = pipeline.run()
    return {"encoded": run["Transform"], "candidates": run["CandidateGenerator"]}


def info(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("0", ()),
        (0, ()),
        ("256", (256,)),
        (1024, (1024,)),
        ("512-256", (512, 256)),
        ("1024-512-256", (1024, 512, 256)),
        ([7, 3], (7, 3)),
        ([], ()),
    ],
)
def test_hidden_units_by_the_name_of_the_paper(name: Any, widths: tuple[int, ...]) -> None:
    assert parse(weighted_logistic.Config, {"hidden_units": name}).hidden_units == widths


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hidden_units": "256-512"},
            "`hidden_units` must be widths, or one of 0, 256, 512, 1024, 512-256, 1024-512, 1024-512-256. "
            "Received: '256-512'.",
        ),
        ({"hidden_units": 300}, "Received: 300."),
        (
            {"without": ["history", "histroy"]},
            "`without` must name groups of features: retriever, history, impressions, content, context, example_age. "
            "Received: histroy.",
        ),
        ({"watch_time_cap": 0}, "`watch_time_cap` of ranker: Input should be greater than 0. Received: 0."),
        ({"watch_time_unit": -60}, "`watch_time_unit` of ranker: Input should be greater than 0. Received: -60."),
        ({"negatives": "seen"}, "Input should be 'auto', 'shown' or 'retrieved'. Received: 'seen'."),
    ],
)
def test_settings_of_the_ranker_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ShortlistError) as error:
        parse(weighted_logistic.Config, settings, "ranker")
    assert str(error.value).endswith(message)


def test_weights_by_hand() -> None:
    label, weight = np.array([1, 1, 0, 1], "f4"), np.array([30, 600, 0, 120], "f4")
    for settings, source, expected in (
        ({}, "watch_time", [0.5, 10, 1, 2]),
        ({"watch_time_cap": 300}, "watch_time", [0.5, 5, 1, 2]),
        ({"watch_time_cap": 60, "watch_time_unit": 30}, "watch_time", [1, 2, 1, 2]),
        ({"watch_time_cap": 60, "watch_time_unit": 30}, "rating", [30, 600, 1, 120]),  # has no seconds
        ({"weighted": False, "watch_time_cap": 60}, "watch_time", [1, 1, 1, 1]),
    ):
        found = weighted_logistic._weights(weighted_logistic.Config(**settings), source, label, weight)
        assert found.tolist() == expected
        assert found.dtype == np.float32


def test_the_last_of_a_history() -> None:
    history = np.array([[5, 6, 7, 0], [0, 0, 0, 0], [1, 2, 3, 4]])
    assert last_n(history, 2)[0].numpy().tolist() == [[6, 7], [0, 0], [3, 4]]
    assert last_n(history, 6)[0].numpy().tolist() == [[5, 6, 7, 0, 0, 0], [0] * 6, [1, 2, 3, 4, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "cap", "unit"),
    [
        ({}, 1e9, 60),
        ({"watch_time_cap": 30.0}, 30, 60),
        ({"watch_time_unit": 1.0}, 1e9, 1),
        ({"weighted": False}, 0, 0),
    ],
)
def test_without_features_the_odds_are_those_of_what_was_shown(
    tmp_path: Path, shown: Any, shown_parts: Any, settings: dict[str, Any], cap: float, unit: float
) -> None:
    """All watch time, in the unit and up to the cap, over the number of impressions without a watch."""
    known = {r["item"] for r in shown_parts["train"]}
    rows = [r for r in shown_parts["rank_train"] if r["item"] in known]
    watched = [r["watch_time"] for r in rows if r["event"] == "watch"]
    total = sum(min(w, cap) / unit for w in watched) if unit else len(watched)
    folder = train(RANKER, shown, tmp_path / "m", **CONSTANT, **settings)
    odds, _ = answers(RANKER, folder, shown)
    np.testing.assert_allclose(odds, total / (len(rows) - len(watched)), rtol=1e-4)
    unit = info(folder)["config"]["watch_time_unit"]
    assert info(folder)["expected_watch_time"] == ({"unit": unit} if settings.get("weighted", True) else None)
    assert (info(folder)["learned_from_shown"], info(folder)["notes"]) == (True, [])


@pytest.mark.parametrize(
    ("log", "settings", "unit", "notes"),
    [
        ("shown", {"negatives": "retrieved"}, 60, [UNSHOWN]),
        ("inputs", {}, 1, [PROXY, UNSHOWN]),
        ("inputs", {"weighted": False}, 0, [UNSHOWN]),
    ],
)
def test_the_odds_of_what_was_retrieved_are_no_minutes(
    tmp_path: Path, request: Any, log: str, settings: dict[str, Any], unit: float, notes: list[str]
) -> None:
    """The weights of all positives that were retrieved, a rating where there is no watch time, over the negatives."""
    given = request.getfixturevalue(log)
    with np.load(given["candidates"] / "rank_train.npz") as table:
        there, label, weight = table["items"] >= 2, table["label"], table["weight"]
    folder = train(RANKER, given, tmp_path / "m", **CONSTANT, **settings)
    odds, _ = answers(RANKER, folder, given)
    total = weight[label].sum() / unit if unit else label.sum()
    np.testing.assert_allclose(odds, total / (there & ~label).sum(), rtol=1e-4)
    assert (info(folder)["expected_watch_time"], info(folder)["learned_from_shown"]) == (None, False)
    assert info(folder)["notes"] == notes


def test_a_log_of_watches_has_nothing_that_was_only_shown(tmp_path: Path, inputs: Any) -> None:
    with pytest.raises(ShortlistError) as error:
        train(RANKER, inputs, tmp_path / "m", negatives="shown")
    assert str(error.value) == (
        "`ranker.negatives` can be shown only for a log with impressions: rows whose `event` is impression. Give "
        "them, or take retrieved. Received: shown, for a log of watches."
    )


@pytest.mark.parametrize(
    ("file", "column", "value", "negatives", "what"),
    [
        ("rank_train.shown.npz", "watched", True, "shown", "impressions, no impression without a watch"),
        ("rank_train.shown.npz", "watched", False, "auto", "impressions, no positive"),
        ("rank_train.npz", "label", True, "retrieved", "candidates, no negative"),
    ],
)
def test_one_of_a_kind_is_refused(
    tmp_path: Path, shown: Any, file: str, column: str, value: bool, negatives: str, what: str
) -> None:
    folder = tmp_path / "candidates"
    shutil.copytree(shown["candidates"].uri, folder)
    with np.load(folder / file) as table:
        changed = {**table, column: np.full_like(table[column], value)}
    np.savez(folder / file, **changed)
    given = {**shown, "candidates": Candidates(folder, "changed")}
    with pytest.raises(ShortlistError) as error:
        train(RANKER, given, tmp_path / "m", negatives=negatives)
    kind, items = what.split(",")[0], changed["item"] if "shown" in file else changed["items"]
    assert str(error.value) == (
        f"`weighted_logistic` needs positives and negatives among the {kind} of rank_train. Raise `split.rank_train` "
        f"(kfold has none; take another strategy) or `shortlist.quota`. Received: {(items >= 2).sum():,} {what}."
    )


def test_with_embeddings_the_ranker_keeps_the_items_that_it_knows(
    tmp_path: Path, shown: Any, trained: dict[str, Path]
) -> None:
    settings = {"embedding_dim": 2, "history_length": 3, "epochs": 2, "table_learning_rate": 0.5}
    folder = train(RANKER, shown, tmp_path / "m", **settings)
    assert (folder / "items.txt").read_text() == (shown["encoded"] / "items.txt").read_text()
    served, model = answers(RANKER, folder, shown)
    np.testing.assert_allclose(served, model, rtol=1e-5)
    loaded = tf.saved_model.load(str(folder / "serving"))  # kept, as its functions don't keep it
    score = loaded.score
    with np.load(shown["candidates"] / "test.npz") as table:
        features, items, history = (tf.constant(table[name]) for name in ("features", "items", "history"))
    other = score(features, tf.where(items >= 2, 2, 0), history)["odds"].numpy()
    past = score(features, items, tf.zeros_like(history))["odds"].numpy()
    there = items.numpy() >= 2
    for changed in (other, past):
        assert np.abs(changed / served - 1)[there].max() > 1e-3
    assert not (trained[RANKER] / "items.txt").exists()


def test_a_group_that_is_left_out_changes_nothing(tmp_path: Path, shown: Any) -> None:
    folder = train(RANKER, shown, tmp_path / "m", without=["history", "content"])
    names = shown["candidates"].read_json("candidates.json")["feature_names"]
    loaded = tf.saved_model.load(str(folder / "serving"))  # kept, as its functions don't keep it
    score = loaded.score
    with np.load(shown["candidates"] / "test.npz") as table:
        features, items, history = (table[name] for name in ("features", "items", "history"))
    before = score(features, items, history)["odds"].numpy()
    for group, changes in (("history", False), ("content", False), ("retriever", True)):
        moved = features + 10 * np.array([group_of(name) == group for name in names], np.float32)
        assert np.array_equal(score(moved, items, history)["odds"].numpy(), before) != changes


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
        ("hybrid", {"patience": 2, "learning_rate": 0.1}),
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


@pytest.mark.parametrize("model", ["wals", "two_tower", RANKER])
def test_patience_needs_a_validation(tmp_path: Path, inputs: Any, model: str) -> None:
    parts = fixed_models.random_parts(7, shares=(5, 3, 0, 2))
    items = [{"item": "item 00", "title": "A Title"}]
    encoded = tables.encode(tables.write_splits(tmp_path / "s", parts, items))
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
        train(model, {"encoded": encoded, "of": {}}, tmp_path / "m")


def test_ratings_are_needed_and_a_context(tmp_path: Path, inputs: Any) -> None:
    rows = [tables.row("u", f"i{n}", n) for n in range(4)]
    encoded = tables.encode(tables.write_splits(tmp_path / "s", {"train": rows}))
    with pytest.raises(ShortlistError) as error:
        train("biased_mf", {"encoded": encoded}, tmp_path / "m")
    assert str(error.value) == (
        "`biased_mf` learns from ratings, and no row of the training part has one. Give a column `rating`, or use "
        "wals. Received: 4 rows."
    )
    config = config_class("camf")()
    with pytest.raises(ShortlistError) as error:
        camf.train(config, inputs, tmp_path / "n")
    assert str(error.value) == (
        "`camf` needs a context. Give columns `context_<dimension>`, or use biased_mf. Received: none."
    )


def test_what_needs_a_context_says_so(tmp_path: Path, inputs: Any) -> None:
    with pytest.raises(ShortlistError) as error:
        train("biased_mf", inputs, tmp_path / "m", split={"side": "user"})
    assert str(error.value) == (
        "`split` needs a context. Give columns `context_<dimension>`, or leave it out. Received: none."
    )
    with pytest.raises(ShortlistError) as error:
        importlib.import_module("shortlist.trainers.post_filter").train(config_class("post_filter")(), inputs, tmp_path)
    assert str(error.value) == (
        "`post_filter` needs a context. Give columns `context_<dimension>`, or set transform.time_contexts. "
        "Received: none."
    )


@pytest.mark.parametrize("side", ["item", "both"])
def test_a_split_is_found_in_the_training_part_and_written(tmp_path: Path, inputs: Any, side: str) -> None:
    data = EncodedData(with_context(inputs["encoded"], tmp_path / "data"))
    (data.artifact / "context_company.txt").write_text("alone\nfriends\n")
    split = {"side": side, "alpha": 0.6, "min_ratings": 2}
    folder = train("biased_mf", {"encoded": data.artifact}, tmp_path / "m", split=split)
    x, y = ratings(data.rows("train"))
    found = pq.read_table(folder / "context_splits.parquet").to_pylist()
    names = {"item": data.items["id"], "user": ["", "", *(data.artifact / "users.txt").read_text().splitlines()]}
    sides = ("item", "user") if side == "both" else (side,)
    assert {row["side"] for row in found} == set(sides)
    discover()
    model = tf.keras.models.load_model(str(folder / "model.keras"))
    for row in found:
        condition = {"company=alone": 2, "company=friends": 3}[row["condition"]]
        own = x[row["side"]] == list(names[row["side"]]).index(row["id"])
        inside = own & (x["context_company"] == condition)
        assert (row["n_in"], row["n_out"]) == (inside.sum(), own.sum() - inside.sum())
        if y[inside].std() * y[own & ~inside].std() > 0:
            expected = scipy.stats.ttest_ind(y[inside], y[own & ~inside], equal_var=False)
            assert (row["statistic"], row["p"]) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-5)
    for one in ("user", "item"):
        further = sum(row["side"] == one for row in found)
        assert getattr(model.model, f"num_{one}s") == getattr(data, f"num_{one}s") + further
    assert hasattr(model, "item_vectors") == (side == "user")
    assert len(info(folder)["notes"]) == len(sides)
    served = tf.saved_model.load(str(folder / "serving"))
    query = {"user": tf.constant([2, 3, 4]), "history": tf.zeros([3, 1], tf.int32)}
    query |= {"history_time": tf.zeros([3, 1], tf.int64), "time": tf.zeros([3], tf.int64)}
    query["context_company"] = tf.constant([0, 2, 3])
    np.testing.assert_allclose(served.score_items(query), model.score_items(query), rtol=1e-5, atol=1e-6)
    assert served.score_items(query).shape == (3, data.num_items)


def test_items_that_are_their_own_attributes_are_few(tmp_path: Path, inputs: Any) -> None:
    folder = train("post_filter", inputs, tmp_path / "m", attributes="item")
    served, loaded = answers("post_filter", folder, inputs)
    np.testing.assert_allclose(served, loaded, rtol=1e-5, atol=1e-6)
    data = EncodedData(inputs["encoded"])
    data.num_items = 2003
    with pytest.raises(ShortlistError) as error:
        post_filter._attributes(data, "item")
    assert str(error.value) == (
        "`attributes` can be the items themselves for 2,000 of them at most; use genres. Received: 2,001 items."
    )
    data.state = {**data.state, "genres": []}
    with pytest.raises(ShortlistError, match=r"^`attributes` must be there: the items have no genres\. .*'genres'\.$"):
        post_filter._attributes(data, "genres")


def test_a_dimension_of_many_conditions_is_noted_and_warned_of(tmp_path: Path, inputs: Any) -> None:
    many = with_context(inputs["encoded"], tmp_path / "data")
    set_conditions(many.uri, 1000)
    for deviation, noted in (("CI", True), ("low_rank", False)):
        folder = tmp_path / deviation
        folder.mkdir()
        config = parse(config_class("camf"), {**TINY["camf"], "deviation": deviation, "epochs": 1})
        with console.capture() as said:
            camf.train(config, {"encoded": many}, folder)
        assert any("context_company has 1,000 conditions" in note for note in info(folder)["notes"]) == noted
        assert ("warning: context_company has 1,000 conditions" in " ".join(said.get().split())) == noted


def test_all_ratings_teach_and_the_context_is_read(tmp_path: Path, inputs: Any, trained: dict[str, Path]) -> None:
    data = EncodedData(with_context(inputs["encoded"], tmp_path / "data"))
    x, y = ratings(data.rows("train"))
    assert len(y) == len(data.rows("train")["item"])
    discover()
    model = tf.keras.models.load_model(str(trained["camf"] / "model.keras"))
    assert float(model.mean) == pytest.approx(y.mean())
    assert int(model.optimizer.iterations) == 2 * -(-len(y) // 64)
    cells = np.unique(
        x["item"].astype(int)[x["context_company"] > 0] * 5 + x["context_company"][x["context_company"] > 0]
    )
    np.testing.assert_array_equal(np.flatnonzero(model.item_context), cells)


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
    assert list(config.sources) == ["wals", "two_tower", "ease"]
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
    assert list(added.sources) == ["wals", "two_tower", "ease", "second"]


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
            f"`model` must be one of {', '.join(sorted(TINY))}.",
        ),
        ({"seed.x": 1}, "`seed.x` is not a setting: `seed` is a value. Leave the rest out."),
        ({"sources": {}}, "`sources` of the configuration: "),
        ({"sources.wals": 3}, "`sources.wals` must be a table of settings. Received: 3."),
        ({"sources": 3}, "`sources` must be a table of settings. Received: 3."),
        (
            {"shortlist.quota": {"wals": 3}},
            "`shortlist.quota` must name exactly the sources wals, two_tower, ease. Received: wals.",
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
