"""The hand-off against loops: labels, weights, what was not retrieved, and every way to split."""

from pathlib import Path
from typing import Any

import fixed_models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tables
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components import candidate_generator
from shortlist.components._engine import Engine, EngineConfig, engine_of
from shortlist.components._first_stage import ShortlistConfig, build_shortlist
from shortlist.components._queries import EncodedData, Queries, Ragged, build_queries
from shortlist.components.artifacts import Artifact, Candidates, Examples
from shortlist.components.candidate_generator import CandidateGenerator, label_candidates
from shortlist.components.pipeline import Component, Pipeline
from shortlist.components.splitter import SplitConfig, Splitter
from shortlist.components.trainer import Trainer
from shortlist.components.transform import Transform
from shortlist.trainers import weighted_logistic

SEEDS = {"left": 1, "right": 2}


def generate(
    workdir: Path, parts: dict[str, list[tables.Row]], engine: Engine | None = None, **config: Any
) -> dict[str, Artifact]:
    pipeline = Pipeline(workdir, engine=engine)
    encoded = fixed_models.encoded(pipeline, parts)
    sources = {n: pipeline.add(fixed_models.FixedIndex(n, seed), encoded) for n, seed in SEEDS.items()}
    pipeline.add(CandidateGenerator(ShortlistConfig(**{"size": 8, "quota": 5, **config})), encoded, sources)
    return pipeline.run()


def load(run: dict[str, Artifact], split: str) -> dict[str, np.ndarray]:
    with np.load(run["CandidateGenerator"] / f"{split}.npz") as table:
        return dict(table)


def queries(targets: list[list[tuple[int, float]]]) -> Queries:
    """Queries of which nothing is known but the targets, each with its weight."""
    offsets = np.cumsum([0, *map(len, targets)])
    flat = [pair for own in targets for pair in own]
    items, weights = (np.array([p[n] for p in flat], kind) for n, kind in ((0, np.int32), (1, np.float32)))
    none = Ragged(np.zeros(len(targets) + 1, np.int64), np.zeros(0, np.int32))
    user = np.arange(len(targets))
    return Queries("test", user, user, user, none, none, none, Ragged(offsets, items), Ragged(offsets, weights))


targets = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.5, 1.0, 3.0])), max_size=6)
lists = st.lists(st.integers(1, 12), max_size=5, unique=True).map(lambda found: [*found, *[0] * (5 - len(found))])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(targets, lists), min_size=1, max_size=4))
def test_labels_equal_the_loop(cases: list[tuple[list[tuple[int, float]], list[int]]]) -> None:
    wanted, items = [list(case) for case in zip(*cases, strict=True)]
    label, weight, retrieved = label_candidates(queries(wanted), np.array(items, np.int32))
    for q, line in enumerate(items):
        for k, item in enumerate(line):
            own = [w for i, w in wanted[q] if i == item and i >= 2]
            assert label[q, k] == bool(own)
            assert weight[q, k] == (own[0] if own else 0)
    assert retrieved == sum(i >= 2 and i in line for own, line in zip(wanted, items, strict=True) for i, _ in own)


def test_labels_by_hand() -> None:
    found = label_candidates(queries([[(5, 2.0), (1, 9.0), (5, 4.0)], [(5, 7.0)]]), np.array([[3, 5, 0], [3, 4, 0]]))
    np.testing.assert_array_equal(found[0], [[False, True, False], [False, False, False]])
    np.testing.assert_array_equal(found[1], [[0, 2, 0], [0, 0, 0]])
    assert found[2] == 2  # the item was watched twice; the unknown one and the other user's were not retrieved


@pytest.fixture(scope="module")
def parts() -> dict[str, list[tables.Row]]:
    """With ratings, an item that training lacks, one watched twice, and a stranger."""
    parts = fixed_models.random_parts(4)
    for n, r in enumerate(r for rows in parts.values() for r in rows):
        r["rating"] = 1.0 + n % 5
    parts["rank_train"][0]["item"] = "unknown"
    parts["rank_train"][1] = {**parts["rank_train"][2], "timestamp": parts["rank_train"][1]["timestamp"], "rating": 4.5}
    parts["validation"].append(tables.row("stranger", "item 03", 1_600_000_000))
    return parts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, list[tables.Row]]) -> dict[str, Artifact]:
    return generate(tmp_path_factory.mktemp("candidates"), parts)


def test_candidates_hold_exactly_what_was_retrieved(run: dict[str, Artifact], parts: Any) -> None:
    data, info = EncodedData(run["Transform"]), run["CandidateGenerator"].read_json("candidates.json")
    row = {item: n for n, item in enumerate(data.items["id"]) if n >= 2}
    assert any(info["not_retrieved"].values())
    for split in Candidates.NAMES:
        table, asked = load(run, split), build_queries(data, split)
        users = [data.users["id"][key] for key in table["user_key"]]
        assert users == sorted({r["user"] for r in parts[split]})
        before = list(parts)[: list(parts).index(split)]
        missed = 0
        for q, user in enumerate(users):
            items = [int(i) for i in table["items"][q] if i]
            assert len(items) == len(set(items))
            seen = {row.get(r["item"]) for name in before for r in parts[name] if r["user"] == user}
            assert not seen & set(items)
            own = [r for r in parts[split] if r["user"] == user]
            weights = {row[r["item"]]: r.get("rating") or 1.0 for r in own[::-1] if r["item"] in row}
            assert table["label"][q].tolist() == [int(i) in weights for i in table["items"][q]]
            expected = [weights.get(int(i), 0.0) for i in table["items"][q]]
            np.testing.assert_allclose(table["weight"][q], expected)
            missed += sum(row.get(r["item"]) not in items for r in own)
            assert not table["features"][q][len(items) :].any()
        assert info["positives"][split] == len(parts[split]) == len(asked.targets.values)
        assert info["not_retrieved"][split] == missed
        assert table["items"].dtype == table["user_key"].dtype == np.int32
        assert table["features"].dtype == table["fused"].dtype == table["weight"].dtype == np.float32
        assert table["features"].shape == (len(users), 8, len(info["feature_names"]))
    assert info["sources"] == list(SEEDS)
    assert info["weight_from"] == "rating"
    assert ShortlistConfig(**info["shortlist"]) == ShortlistConfig(size=8, quota=5)


def test_users_in_several_tasks_and_on_beam_get_the_same_candidates(
    tmp_path: Path, run: dict[str, Artifact], parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate_generator, "USERS", 3)
    beam = engine_of(EngineConfig(name="beam", batch=20))
    found = [generate(tmp_path / name, parts, engine) for name, engine in (("here", None), ("there", beam))]
    for split in Candidates.NAMES:
        whole, cut, there = (load(each, split) for each in (run, *found))
        assert whole.keys() == cut.keys() == there.keys()
        assert len(whole["user_key"]) > 3
        for name, values in whole.items():
            np.testing.assert_array_equal(cut[name], there[name])
            assert (cut[name].dtype, cut[name].shape) == (values.dtype, values.shape)
            if name != "history":
                np.testing.assert_allclose(cut[name], values, rtol=1e-5, atol=1e-6)
    names = {path.name for path in found[1]["CandidateGenerator"].uri.iterdir()}
    assert names == {path.name for path in run["CandidateGenerator"].uri.iterdir()}
    infos = [each["CandidateGenerator"].read_json("candidates.json") for each in (run, *found)]
    assert infos[0] == infos[1] == infos[2]


def test_the_answer_to_an_empty_history_is_popularity(run: dict[str, Artifact], parts: Any) -> None:
    data, table = EncodedData(run["Transform"]), load(run, "validation")
    count = {n: sum(r["item"] == i for r in parts["train"]) for n, i in enumerate(data.items["id"]) if n >= 2}
    stranger = [data.users["id"][key] for key in table["user_key"]].index("stranger")
    assert [i for i in table["items"][stranger] if i] == sorted(count, key=lambda n: (-count[n], n))[:5]


@pytest.mark.parametrize("given", [("watch_time", "rating"), ("rating",), ()])
def test_a_positive_weighs_what_the_data_has(tmp_path: Path, given: tuple[str, ...]) -> None:
    parts = fixed_models.random_parts(5)
    for n, r in enumerate(r for rows in parts.values() for r in rows):
        r |= {name: float(10 * k + n % 4) for k, name in enumerate(given, 1)}
    run = generate(tmp_path, parts)
    assert run["CandidateGenerator"].read_json("candidates.json")["weight_from"] == (given or ("none",))[0]
    for split in Candidates.NAMES:
        table = load(run, split)
        expected = {r[given[0]] for r in parts[split]} if given else {1.0}
        assert set(table["weight"][table["label"]]) == expected
        assert not table["weight"][~table["label"]].any()


def test_a_source_of_another_encoding_is_refused(tmp_path: Path, parts: Any) -> None:
    pipeline = Pipeline(tmp_path)
    ours = fixed_models.encoded(pipeline, parts)
    theirs = fixed_models.encoded(pipeline, fixed_models.random_parts(9), "theirs")
    foreign = pipeline.add(fixed_models.FixedIndex("foreign", 1), theirs)
    pipeline.add(CandidateGenerator(), ours, {"foreign": foreign})
    with pytest.raises(ShortlistError, match=r"\(Index\) was not made from .* \(Encoded\): they belong to different"):
        pipeline.run()


def test_no_positive_of_rank_train_at_all_is_refused(tmp_path: Path, parts: Any) -> None:
    lost = [{**r, "item": f"unknown {n}"} for n, r in enumerate(parts["rank_train"])]
    with pytest.raises(ShortlistError) as error:
        generate(tmp_path, {**parts, "rank_train": lost})
    assert str(error.value) == (
        "`shortlist` holds no positive of rank_train, so there is nothing to learn a ranking from. Raise "
        "`shortlist.quota` or train the sources longer. Received: quota=5, 36 positives."
    )


def test_a_quota_names_the_sources(tmp_path: Path, parts: Any) -> None:
    run = generate(tmp_path, parts, quota={"right": 1, "left": 3}, size=300)
    assert load(run, "test")["items"].shape == (12, 4)
    assert (load(run, "test")["items"] > 0).sum(axis=1).max() <= 4
    with pytest.raises(ShortlistError, match=r"must name exactly the sources left, right. Received: left, other"):
        generate(tmp_path, parts, quota={"left": 3, "other": 1})


@pytest.mark.parametrize("wrong", [[0.0], [-3.0, -3.0], [float("inf"), 0.0]])
def test_a_weight_that_would_drop_or_drown_a_row_is_refused(tmp_path: Path, parts: Any, wrong: list[float]) -> None:
    timed = {n: [{**r, "watch_time": 9.0} for r in rows] for n, rows in parts.items()}
    for place, value in enumerate(wrong):
        timed["validation"][2 * place]["watch_time"] = value
    timed["train"][3]["watch_time"] = 0.0  # no label is made of train
    with pytest.raises(ShortlistError) as error:
        generate(tmp_path, timed)
    received = {0.0: "0 in 1", -3.0: "-3 in 2", float("inf"): "0, inf in 2"}[wrong[0]]
    assert str(error.value) == (
        "`watch_time` must be finite and above 0 for every positive, as it is what a positive weighs. Leave such rows "
        "out of the log, make them impressions, or raise --positive-threshold. "
        f"Received: {received} of 25 positives of validation."
    )


@pytest.fixture(scope="module")
def shown_parts(parts: dict[str, list[tables.Row]]) -> dict[str, list[tables.Row]]:
    """With impressions; one user was only shown things in rank_train, one was shown nothing known in test."""
    found = fixed_models.with_impressions({n: [{**r, "rating": None} for r in rows] for n, rows in parts.items()})
    for r in found["rank_train"]:
        if r["user"] == "user 04":
            r |= {"event": "impression", "watch_time": None}
    for r in found["test"]:
        if r["user"] == "user 07":
            r["item"] = "unknown"
    return found


@pytest.fixture(scope="module")
def shown_run(tmp_path_factory: pytest.TempPathFactory, shown_parts: Any) -> dict[str, Artifact]:
    return generate(tmp_path_factory.mktemp("shown"), shown_parts, history_length=3)


def test_what_was_shown_equals_the_loop(shown_run: dict[str, Artifact], shown_parts: Any) -> None:
    data = EncodedData(shown_run["Transform"])
    row = {item: n for n, item in enumerate(data.items["id"]) if n >= 2}
    mean = np.mean([r["watch_time"] for r in shown_parts["train"] if r["event"] == "watch"])
    alone = set()
    for split in Candidates.NAMES:
        table, before = load(shown_run, f"{split}.shown"), list(shown_parts)[: list(shown_parts).index(split)]
        users = [data.users["id"][key] for key in table["user_key"]]
        assert users == sorted({r["user"] for r in shown_parts[split]})
        alone |= set(users) - {r["user"] for r in shown_parts[split] if r["event"] == "watch"}
        wanted = [
            (q, row[r["item"]], r["event"] == "watch", r["timestamp"], (r.get("watch_time") or mean))
            for q, user in enumerate(users)
            for r in sorted(shown_parts[split], key=lambda r: r["user"])
            if r["user"] == user and r["item"] in row
        ]
        owner, item, watched, time, weight = map(np.array, zip(*wanted, strict=True))
        for name, values in (("owner", owner), ("item", item), ("watched", watched), ("time", time)):
            np.testing.assert_array_equal(table[name], values, err_msg=name)
        np.testing.assert_allclose(table["weight"], np.where(watched, weight, 0), rtol=1e-6)
        for q, user in enumerate(users):
            first = min(r["timestamp"] for r in shown_parts[split] if r["user"] == user)
            earlier = [r for name in before for r in shown_parts[name] if r["user"] == user and r["timestamp"] < first]
            past = [row[r["item"]] for r in earlier if r["event"] == "watch" and r["item"] in row][-3:]
            assert table["history"][q].tolist() == [*past, *[0] * (3 - len(past))]
    assert {"user 04"} <= alone  # nothing watched there, and described alike


def test_shown_items_are_described_as_if_one_were_asked_for_at_a_time(shown_run: dict[str, Artifact]) -> None:
    data = EncodedData(shown_run["Transform"])
    sources = {name: shown_run[f"FixedIndex.{name}"] for name in SEEDS}
    info = shown_run["CandidateGenerator"].read_json("candidates.json")
    first_stage = build_shortlist(data, sources, ShortlistConfig(**info["shortlist"]))
    for split in ("rank_train", "test"):
        table, asked = load(shown_run, f"{split}.shown"), build_queries(data, split, of_all=True)
        of_query = {}
        for rows, batch in asked.ranking_batches(1):
            exclude = tf.constant(batch.pop("exclude"))
            query = {name: tf.constant(value) for name, value in batch.items()}
            proposals = first_stage.propose(query, exclude)
            of_query[rows.start] = query, proposals, first_stage.cut(proposals)[0]
        places = np.random.default_rng(0).permutation(len(table["item"]))[:8]
        for place in places:
            query, proposals, best = of_query[table["owner"][place]]
            features, _ = first_stage.describe(query, proposals, tf.constant([[table["item"][place]]]), best)
            np.testing.assert_allclose(table["features"][place], features[0, 0], rtol=1e-6, atol=1e-6)
        assert len(table["features"]) == len(table["item"])
        names = info["feature_names"]
        ignored = table["features"][:, names.index("ignored")]
        assert set(names) >= {"since_ignored", "user_click_rate", "click_rate", "mean_weight"}
        assert np.isfinite(table["features"]).all()
        assert np.ptp(table["features"][:, names.index("user_click_rate")]) > 0
        assert not ignored.any()  # nobody is shown an item twice here


def test_a_candidate_that_was_shown_is_described_alike_in_both_tables(shown_run: dict[str, Artifact]) -> None:
    """The shortlist's own features are those of an item beside it."""
    both = 0
    for split in Candidates.NAMES:
        listed, shown = load(shown_run, split), load(shown_run, f"{split}.shown")
        for place, item in enumerate(shown["item"]):
            (q,) = np.nonzero(listed["user_key"] == shown["user_key"][shown["owner"][place]])
            if not len(q) or item not in listed["items"][q[0]]:
                continue
            k = listed["items"][q[0]].tolist().index(item)
            wanted, age = listed["features"][q[0], k], -1 if split == "rank_train" else None  # of other users
            np.testing.assert_allclose(shown["features"][place][:age], wanted[:age], rtol=1e-6, atol=1e-6)
            again = (shown["owner"] == shown["owner"][place]) & (shown["item"] == item)
            assert listed["label"][q[0], k] == shown["watched"][again].any()
            both += 1
    assert both > 10


def test_a_log_of_watches_has_no_table_of_what_was_shown(run: dict[str, Artifact]) -> None:
    assert not list(run["CandidateGenerator"].uri.glob("*.shown.npz"))


class Log(Component):
    """Forty users, each with ten rows at times of their own."""

    output = Examples

    def run(self, out: Path) -> None:
        rng = np.random.default_rng(3)
        rows = [
            tables.row(f"user {u:02}", f"item {i:02}", 1_500_000_000 + 1_000 * n + int(rng.integers(900)), rating=4.0)
            for u in range(40)
            for n, i in enumerate(rng.permutation(24)[:10])
        ]
        pq.write_table(pa.Table.from_pylist(rows, tables.INTERACTIONS), out / "interactions.parquet")
        items = [{"item": f"item {i:02}", "genres": [f"g{i % 2}"]} for i in range(24)]
        pq.write_table(pa.Table.from_pylist(items, tables.ITEMS), out / "items.parquet")
        pq.write_table(pa.table({"user": [f"user {u:02}" for u in range(40)]}), out / "users.parquet")
        (out / "source.json").write_text("{}")


def split_by(workdir: Path, strategy: str, **config: Any) -> tuple[Pipeline, str]:
    pipeline = Pipeline(workdir)
    splits = pipeline.add(Splitter(SplitConfig(strategy=strategy, **config)), pipeline.add(Log()))
    encoded = pipeline.add(Transform(), splits)
    sources = {n: pipeline.add(fixed_models.FixedIndex(n, seed), encoded) for n, seed in SEEDS.items()}
    candidates = pipeline.add(CandidateGenerator(ShortlistConfig(size=8, quota=6)), encoded, sources)
    config = weighted_logistic.Config(hidden_units=(2,), epochs=1)
    run_fn = "shortlist.trainers.weighted_logistic:train"
    return pipeline, pipeline.add(Trainer(config, "ranker", run_fn), encoded, candidates).step


@pytest.mark.parametrize(
    ("strategy", "users"),
    [
        ("per_user_time", (40, 40, 40)),
        ("leave_last_out", (40, 40, 40)),
        ("strong", (8, 4, 4)),
        ("global_time", None),
    ],
)
def test_every_strategy_gives_candidates(tmp_path: Path, strategy: str, users: tuple[int, ...] | None) -> None:
    pipeline, _ = split_by(tmp_path, strategy)
    run = pipeline.run(until=["CandidateGenerator"])
    info, data = run["CandidateGenerator"].read_json("candidates.json"), EncodedData(run["Transform"])
    for n, split in enumerate(Candidates.NAMES):
        table, asked = load(run, split), build_queries(data, split)
        assert len(table["items"]) == (users[n] if users else len(set(data.rows(split)["user_key"].tolist())))
        assert 0 < info["not_retrieved"][split] < info["positives"][split] == len(data.rows(split)["item"])
        assert (np.diff(asked.history.offsets) > 0).all()  # of held-out users the fold-in
        assert (table["label"].sum(), table["label"].any()) == (
            info["positives"][split] - info["not_retrieved"][split],
            True,
        )
        assert ((asked.user == 1) == (strategy == "strong")).all()


def test_kfold_has_nothing_to_train_a_ranker_on(tmp_path: Path) -> None:
    pipeline, ranker = split_by(tmp_path, "kfold")
    table = load(pipeline.run(until=["CandidateGenerator"]), "rank_train")
    assert table["items"].shape == (0, 8)
    assert table["items"].dtype == np.int32
    with pytest.raises(ShortlistError) as error:
        pipeline.run(until=[ranker])
    assert str(error.value) == (
        "`weighted_logistic` needs positives and negatives among the candidates of rank_train. Raise "
        "`split.rank_train` (kfold has none; take another strategy) or `shortlist.quota`. Received: 0 candidates, no "
        "positive."
    )


def test_without_validation_its_candidates_are_none(tmp_path: Path) -> None:
    pipeline, ranker = split_by(tmp_path, "per_user_time", validation=0.0)
    run = pipeline.run()
    table, info = load(run, "validation"), run["CandidateGenerator"].read_json("candidates.json")
    assert table["features"].shape == (0, 8, len(info["feature_names"]))
    assert table["label"].shape == table["weight"].shape == table["fused"].shape == (0, 8)
    assert info["positives"]["validation"] == info["not_retrieved"]["validation"] == 0
    assert run[ranker].read_json("model.json")["model"] == "weighted_logistic"
