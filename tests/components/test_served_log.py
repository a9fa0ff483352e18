"""The bundle of a log with impressions: the served features and scores are those of the training path and of a loop.

Past 400 lines because the twin of its requests is here as well.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import oracles
import pytest
import tensorflow as tf
import watch_data
from watch_data import LENGTH, QUOTA, SIZE, START, UNIT

from shortlist.components._first_stage import describe_catalogue
from shortlist.components._queries import EncodedData, build_queries
from shortlist.components._second_stage import read_shortlists, score_shortlists
from shortlist.components.artifacts import Artifact

Request = dict[str, Any]
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
SPLITS = ("rank_train", "validation", "test")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return watch_data.build(tmp_path_factory.mktemp("watched"))


@pytest.fixture(scope="module")
def served(run: dict[str, Artifact]) -> watch_data.Served:
    return watch_data.Served(run)


# --- parity with the training path ------------------------------------------------------------------------------------


def spelled_out(data: EncodedData, split: str) -> list[Request]:
    """The queries of a split as requests to a bundle that knows `train`: of the first split after it nothing needs to
    be said, of the others the history, the impressions since and what was watched."""
    asked, known = build_queries(data, split), build_queries(data, "rank_train", of_all=True)
    stored = dict(zip(known.user_key, np.diff(known.context["impressions"].offsets), strict=True))
    assert len(stored) == watch_data.USERS
    item, requests = data.items["id"], []
    for q, key in enumerate(asked.user_key):
        request: Request = {"user": str(data.users["id"][key]), "time": int(asked.time[q])}

        def line(ragged: Any, q: int = q) -> np.ndarray:
            return ragged.values[ragged.offsets[q] : ragged.offsets[q + 1]]

        if split != "rank_train":
            request |= {
                "history": item[line(asked.history)].tolist(),
                "history_time": line(asked.history_time).tolist(),
                "history_watch_time": line(asked.context["history_weight"]).tolist(),
                "exclude": item[line(asked.seen)].tolist(),
            }
            shown = {
                "impressions": item[line(asked.context["impressions"])].tolist(),
                "impressions_time": line(asked.context["impressions_time"]).tolist(),
            }
            request |= {name: values[stored[key] :] for name, values in shown.items() if values[stored[key] :]}
        requests.append(request)
    return requests


@pytest.fixture(scope="module")
def thousand(run: dict[str, Artifact]) -> list[tuple[Request, str, int]]:
    """1,000 queries of all splits, at random: the request, its split and its place there."""
    data = EncodedData(run["Transform.log"])
    everything = [(request, split, q) for split in SPLITS for q, request in enumerate(spelled_out(data, split))]
    return [everything[n] for n in np.random.default_rng(0).permutation(len(everything))[:1000]]


def test_a_thousand_requests_are_scored_as_in_training(
    run: dict[str, Artifact], served: watch_data.Served, thousand: list[tuple[Request, str, int]]
) -> None:
    """To 1e-6 of the logits, of which the odds are exp: a logit of 4 has no more digits as float32."""
    tables = {split: read_shortlists(run["CandidateGenerator"], split) for split in SPLITS}
    trained = score_shortlists(run["Trainer.ranker"], tables)
    names = watch_data.ids(run["Transform.log"])
    answer = served([{**request, "k": SIZE} for request, _, _ in thousand])
    pairs: dict[str, list[np.ndarray]] = {"odds": [], "expected": []}
    for row, (_, split, q) in enumerate(thousand):
        items = [names[i] for i in tables[split]["items"][q] if i]
        got = [i.decode() for i in answer["items"][row][: len(items)]]
        assert sorted(got) == sorted(items)
        assert (np.diff(answer["scores"][row]) <= 0).all()
        for name, output in (("odds", "scores"), ("expected", "expected_watch_time")):
            wanted = dict(zip(items, trained[split][name][q], strict=False))
            pairs[name].append(np.stack([answer[output][row][: len(got)], [wanted[i] for i in got]]))
    odds, expected = (np.concatenate(pairs[name], axis=1) for name in ("odds", "expected"))
    assert odds.shape[1] > 7000
    assert {split for _, split, _ in thousand} == set(SPLITS)
    np.testing.assert_allclose(np.log(odds[0]), np.log(odds[1]), rtol=1e-6)
    np.testing.assert_allclose(odds[0], odds[1], rtol=3e-6)
    np.testing.assert_allclose(expected[0], UNIT * expected[1], rtol=3e-6)
    for ours, theirs in (odds, (expected[0], UNIT * expected[1])):
        assert np.quantile(np.abs(ours / theirs - 1), 0.99) < 1e-6
    assert np.quantile(odds[1], 0.9) > 1.2 * np.quantile(odds[1], 0.1)  # else a constant would do


def test_a_thousand_requests_are_described_as_in_training(
    run: dict[str, Artifact], served: watch_data.Served, thousand: list[tuple[Request, str, int]]
) -> None:
    """All but the age of a training example, which is 0 in serving."""
    tables = {split: read_shortlists(run["CandidateGenerator"], split) for split in SPLITS}
    names = watch_data.ids(run["Transform.log"])
    found = served.features([request for request, _, _ in thousand])
    got, wanted = [], []
    for own, (_, split, q) in zip(found, thousand, strict=True):
        items = [names[i] for i in tables[split]["items"][q] if i]
        assert sorted(own) == sorted(items)
        got += [list(own[i].values()) for i in items]
        wanted.append(tables[split]["features"][q, : len(items)])
        if split == "rank_train":
            wanted[-1] = np.where(np.array(served.names) == "example_age", 0, wanted[-1])
    for name, ours, theirs in zip(served.names, np.array(got).T, np.concatenate(wanted).T, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE, err_msg=name)
    vary = {name for name, values in zip(served.names, np.array(got).T, strict=True) if np.ptp(values) > 0}
    assert set(served.names) - vary <= {"example_age"}


# --- every feature of an example against a loop -----------------------------------------------------------------------


class Loop:
    """What a request means, from the rows of `train` and the catalogue."""

    def __init__(self, run: dict[str, Artifact]):
        data = EncodedData(run["Transform.before"])
        self.ids = watch_data.ids(run["Transform.before"])
        self.row = {item: n for n, item in enumerate(self.ids) if item}
        self.users = {user: n for n, user in enumerate((data.artifact / "users.txt").read_text().splitlines(), 2)}
        self.languages = (data.artifact / "category_language.txt").read_text().splitlines()
        self.rows = sorted(watch_data.parts()["train"], key=lambda r: r["timestamp"])
        self.now = self.rows[-1]["timestamp"]
        self.catalogue = vars(describe_catalogue(data, 3.0))
        load = lambda name: tf.saved_model.load(str(run[f"RetrievalIndex.{name}_before"] / "index"))  # noqa: E731
        self.sources = {name: load(name) for name in QUOTA}
        self.vectors = {"two_tower": self.sources["two_tower"].item_vectors().numpy()}

    def language(self, value: str | None) -> int:
        if not value:
            return 0
        return self.languages.index(value) + 2 if value in self.languages else 1

    def query(self, r: Request) -> dict[str, Any]:
        time, user = r.get("time", self.now), r.get("user", "")
        mine = [e for e in self.rows if e["user"] == user]

        def column(name: str, absent: Any) -> list[Any]:
            return [absent if v == -1 else v for v in [*r.get(name, []), *[-1] * 99]]

        told = zip(r.get("history", []), column("history_time", time), column("history_watch_time", -1), strict=False)
        told = [(self.row[i], t, w) for i, t, w in told if i in self.row]
        watched = [e for e in mine if e["event"] == "watch"]
        history = told or [(self.row[e["item"]], e["timestamp"], e["watch_time"] or -1) for e in watched]
        shown = [(self.row[e["item"]], e["timestamp"]) for e in mine if e["event"] == "impression"]
        given = zip(r.get("impressions", []), column("impressions_time", time), strict=False)
        shown += [(self.row[i], t) for i, t in given if i in self.row]
        number = int(user[1:]) if user in self.users else None
        stored = None if number is None else ("de", "en", "tlh", None, "fr")[number % 5]
        return {
            "user": self.users.get(user, 1),
            "time": time,
            "history": [i for i, _, _ in history],
            "history_time": [t for _, t, _ in history],
            "history_weight": [w for _, _, w in history],
            "impressions": [i for i, _ in shown],
            "impressions_time": [t for _, t in shown],
            "user_language": self.language(r.get("user_language")) or self.language(stored),
            "exclude": {self.row[e["item"]] for e in watched}
            | {i for i, _, _ in told}
            | {self.row[i] for i in r.get("exclude", []) if i in self.row},
        }

    def stage(self, r: Request) -> SimpleNamespace:
        query = self.query(r)
        dtypes = dict.fromkeys(("user", "history", "user_language"), tf.int32)
        dtypes |= dict.fromkeys(("history_time", "time"), tf.int64)
        batch = {name: tf.constant([query[name]], dtype) for name, dtype in dtypes.items()}
        scores = [source.scores(batch).numpy()[0] for source in self.sources.values()]
        items, _, ranks = oracles.shortlist(scores, QUOTA.values(), SIZE, None, query["history"], query["exclude"])
        return SimpleNamespace(query=query, scores=scores, items=items, ranks=ranks)

    def features(self, r: Request, items: list[str] | None = None) -> dict[str, dict[str, float]]:
        """By item, of the shortlist or of `items` beside it, the features by name."""
        stage = self.stage(r)
        rows = stage.items if items is None else [self.row[i] for i in items]
        ranks = [[own.get(i, limit + 1) for i in rows] for own, limit in zip(stage.ranks, QUOTA.values(), strict=True)]
        best = np.array([*stage.items, *[0] * (SIZE - len(stage.items))])
        theirs = np.array([own[best] for own in stage.scores])
        scores = np.array([own[rows] for own in stage.scores])
        where = self.catalogue, self.vectors, list(QUOTA), LENGTH, stage.query
        found = oracles.ranking_features(*where, rows, scores, ranks, list(QUOTA.values()), (best, theirs))
        return {self.ids[i]: {name: values[n] for name, values in found.items()} for n, i in enumerate(rows)}


@pytest.fixture(scope="module")
def loop(run: dict[str, Artifact]) -> Loop:
    return Loop(run)


AT = START + 40_000_000
REQUESTS: dict[str, Request] = {
    "stored": {"user": "u003"},
    "stored, a language of which no item is": {"user": "u002", "time": AT},
    "stored, another language": {"user": "u000", "user_language": "en"},
    "stored, an unknown language": {"user": "u000", "user_language": "Klingon"},
    "stored and shown since": {"user": "u010", "impressions": ["i00", "i00", "i07"], "time": AT},
    "history longer than its columns": {
        "user": "u004",
        "history": ["i01", "i09", "i02", "i10", "i03"],
        "history_time": [AT - 900_000, AT - 400_000],
        "history_watch_time": [500.0, -1.0, 30.0],
        "time": AT,
    },
    "history shorter than its columns": {
        "user": "nobody",
        "history": ["i01", "i12"],
        "history_time": [AT - 9, AT - 5, AT - 1, 0],
        "history_watch_time": [5.0, 1e6, 7.0, 8.0],
        "user_language": "fr",
        "time": AT,
    },
    "impressions longer than their times": {
        "history": ["i04"],
        "impressions": ["i00", "nothing", "i02", "", "i00", "i08"],
        "impressions_time": [AT - 700_000, AT, AT - 90],
        "time": AT,
    },
    "more times than impressions": {
        "history": ["", "i04", "nothing", "i05"],
        "history_watch_time": [9.0, 300.0, 9.0, 700.0],
        "impressions": ["i06"],
        "impressions_time": [AT - 700_000, 5, 6],
        "time": AT,
    },
    "times without impressions": {"history": ["i04"], "impressions_time": [5, 6], "history_rating": [5.0], "time": AT},
}


def same(got: dict[str, dict[str, float]], wanted: dict[str, dict[str, float]]) -> None:
    assert set(got) == set(wanted)
    for item, values in wanted.items():
        assert set(got[item]) == set(values)
        for name, value in values.items():
            assert got[item][name] == pytest.approx(value, rel=1e-4, abs=2e-4), (item, name)


def test_every_request_means_what_the_loop_says(served: watch_data.Served, loop: Loop) -> None:
    found = served.features(list(REQUESTS.values()))  # in one batch, of lists of all widths
    for (name, request), own in zip(REQUESTS.items(), found, strict=True):
        try:
            same(own, loop.features(request))
        except AssertionError as error:
            raise AssertionError(name) from error


def test_each_row_of_a_batch_is_answered_as_alone(served: watch_data.Served) -> None:
    together = served([{**r, "k": 15} for r in REQUESTS.values()])
    for row, request in enumerate(REQUESTS.values()):
        alone = served([{**request, "k": 15}])
        for name in ("scores", "expected_watch_time"):
            ours, other = (dict(zip(a["items"][n], a[name][n], strict=True)) for a, n in ((together, row), (alone, 0)))
            assert set(ours) == set(other)  # the order of equal odds is that of their last bit
            np.testing.assert_allclose([ours[i] for i in other], list(other.values()), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "changed"),
    [
        ("history_watch_time", [10.0, 2000.0, 900.0], {"finished:genres", "finished:language", "mean_finished"}),
        (
            "impressions",
            ["i00", "i00", "i02"],
            {"click_rate:genres", "click_rate:language", "user_click_rate", "ignored", "since_ignored"},
        ),
        ("user_language", "de", {"match:language"}),
        (
            "history_time",
            [AT - 500_000, AT - 50_000],
            {"log_last_day", "since:genres", "since:language"},  # the third was watched just now, as before
        ),
    ],
)
def test_what_a_feature_of_an_example_changes(
    served: watch_data.Served, name: str, value: Any, changed: set[str]
) -> None:
    base = {"user": "nobody", "history": ["i04", "i13", "i20"], "time": AT}
    before, after = served.features([base, {**base, name: value}])
    assert set(before) == set(after)
    different = {n for item in before for n in before[item] if abs(before[item][n] - after[item][n]) > 1e-5}
    assert different == changed


def test_the_time_of_an_impression_says_only_how_long_ago_it_was(served: watch_data.Served) -> None:
    base = {"history": ["i04"], "impressions": ["i00", "i01", "i02", "i03"], "time": AT}
    before, after = served.features([base, {**base, "impressions_time": [AT - 900_000, -1]}])
    different = {(n, i) for i, own in before.items() for n in own if abs(own[n] - after[i][n]) > 1e-5}
    assert different == {("since_ignored", "i00")}
    assert after["i00"]["since_ignored"] == pytest.approx(np.log1p(900_000 / 86_400), rel=1e-6)
    assert before["i00"]["since_ignored"] == 0


def test_what_is_absent_has_the_default_that_the_page_says(served: watch_data.Served, loop: Loop) -> None:
    base = {"user": "u000", "history": ["i04", "i13"], "impressions": ["i02"]}
    told = {
        "time": loop.now,
        "history_time": [loop.now] * 2,
        "history_watch_time": [-1.0, -1.0],
        "impressions_time": [loop.now],
        "user_language": "de",
    }
    absent, given = served([base]), served([{**base, **told}])
    for name in absent:
        np.testing.assert_array_equal(absent[name], given[name])


def test_what_was_only_shown_is_returned_and_counts_as_ignored(served: watch_data.Served, loop: Loop) -> None:
    found = 0
    for user in ("u000", "u001", "u002", "u003"):
        mine = [e for e in loop.rows if e["user"] == user]
        watched = {e["item"] for e in mine if e["event"] == "watch"}
        shown = [e["item"] for e in mine if e["event"] == "impression" and e["item"] not in watched]
        answer = [i.decode() for i in served([{"user": user, "k": 50}])["items"][0]]
        assert set(shown) <= set(answer)
        assert not watched & set(answer)
        for item, own in served.features([{"user": user}])[0].items():
            times = [e["timestamp"] for e in mine if e["item"] == item]
            assert own["ignored"] == pytest.approx(np.log1p(shown.count(item)))
            since = (loop.now - max(times)) / 86_400 if times else 1e9 / 86_400
            assert own["since_ignored"] == pytest.approx(np.log1p(since), rel=1e-5)
            found += bool(times)
    assert found > 2


def test_rank_describes_any_item_beside_the_shortlist(served: watch_data.Served, loop: Loop) -> None:
    """What was watched, what was only shown and what no source proposes among them; short forms know no impressions
    but those that are stored."""
    rank, items = served.bundle.signatures["rank"], loop.ids[2:]
    for request in ({"user": "u003"}, {"user": "nobody", "history": ["i04", "i05", ""]}):
        inputs = {
            "user": tf.constant([request["user"]]),
            "history": tf.constant([request.get("history", [""])]),
            "time": tf.constant([-1], tf.int64),
            "candidates": tf.constant([items]),
        }
        wanted = loop.features(request, items)
        for names in served.looking():
            got = rank(**inputs)
            pair = got["scores"].numpy()[0], got["expected_watch_time"].numpy()[0] / UNIT
            for name, values in zip(names, pair, strict=False):
                expected = [wanted[i][name] for i in items]
                np.testing.assert_allclose(values, expected, rtol=1e-4, atol=2e-4, err_msg=name)


# --- the expected watch time ------------------------------------------------------------------------------------------


def test_the_expected_watch_time_is_in_seconds_where_it_is_known(
    run: dict[str, Artifact], served: watch_data.Served
) -> None:
    assert watch_data.facts(run)["expected_watch_time"] == {"unit": UNIT}
    answer = served([{"user": "u003", "k": 12}, {"user": "nobody", "k": 4}, {"user": "u003", "k": 2}])
    names = answer["items"].astype(str)
    shortlist = sum(answer["scores"][0] > 0)
    assert 0 < shortlist <= SIZE < answer["count"][0] == 12
    seconds = answer["expected_watch_time"]
    assert (seconds[0, :shortlist] > 1).all()
    assert (seconds[0, shortlist:] == -1).all()  # past the shortlist
    assert seconds[1].tolist() == [-1] * 4 + [0] * 8  # without any history, and no item
    np.testing.assert_allclose(seconds[2, :2], seconds[0, :2], rtol=1e-6)
    assert seconds[2, 2:].tolist() == [0] * 10
    short = served.bundle.signatures["recommend"](
        user=tf.constant(["u003"]),
        history=tf.constant([[""]]),
        exclude=tf.constant([[""]]),
        time=tf.constant([-1], tf.int64),
        k=tf.constant([12]),
    )
    np.testing.assert_allclose(short["expected_watch_time"].numpy()[0], seconds[0], rtol=1e-6)
    assert "expected_watch_time" not in served.bundle.signatures["retrieve"].structured_outputs

    candidates = [*names[0, :3], "nothing", ""]
    for user, wanted in (("u003", [*seconds[0, :3], 0, 0]), ("nobody", [-1, -1, -1, 0, 0])):
        got = served.bundle.signatures["rank"](
            user=tf.constant([user]),
            history=tf.constant([[""]]),
            time=tf.constant([-1], tf.int64),
            candidates=tf.constant([candidates]),
        )
        np.testing.assert_allclose(got["expected_watch_time"].numpy()[0], wanted, rtol=1e-5)


def test_the_page_and_the_records_say_what_the_log_adds(run: dict[str, Artifact]) -> None:
    page = (run["Exporter"] / "signatures.md").read_text("utf-8")
    features = page.split("\n## Features of an example\n")[1].split("\n## ")[0]
    named = [line.split("`")[1] for line in features.splitlines() if line.startswith("| `")]
    added = {"history_watch_time", "impressions", "impressions_time", "user_language"}
    always = {"user", "history", "history_time", "exclude", "include_only", "time", "k", "diversity"}
    assert set(named) == always | {"quota_two_tower", "quota_item_knn"} | added
    assert (
        "| `user_language` | string | the user's language; an absent one is that stored of the user | absent |" in page
    )
    for signature, there in (("recommend", 1), ("serving_default", 1), ("rank", 1), ("retrieve", 0)):
        section = page.split(f"\n## {signature}\n")[1].split("\n## ")[0]
        assert section.count("\n| `expected_watch_time` | float32 ") == there
    records = [
        r for r in run["Exporter"].read_json("requests.json")["requests"] if "expected_watch_time" in r["outputs"]
    ]
    assert {r["signature_name"] for r in records} == {"recommend", "serving_default", "rank"}
