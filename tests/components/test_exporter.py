"""The bundle against a loop over the data that it was made from, and what else a server asks of it.

Past 400 lines because one exported bundle, which takes long to make, is asked everything in one place.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracles
import pytest
import serving_data
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_twin import LENGTH, NAMES, Twin

from shortlist import ShortlistError
from shortlist.components._first_stage import describe_catalogue
from shortlist.components._queries import EncodedData
from shortlist.components._records import encode_example
from shortlist.components.artifacts import Artifact, Candidates, Index, Model
from shortlist.components.exporter import Exporter, ExporterConfig, of_users, store
from shortlist.models._bundle import Servable
from shortlist.models._ranking_features import RankingFeatures
from shortlist.models._shortlist import Shortlist
from shortlist.models._transform import RequestReader

BATCHING = 1e-5

REQUESTS: dict[str, dict[str, Any]] = {
    "known user": {"user": "usér 3"},
    "known user, the whole catalogue": {"user": "usér 8", "k": 1_000},
    "known user, exclude": {"user": "usér 5", "exclude": ["映画-8", "not an item", "", "Ärger-9"], "k": 4},
    "known user, own history": {"user": "usér 5", "history": ["Ärger-1", "映画-9"], "k": 30},
    "known user, own history of unknown items": {"user": "usér 5", "history": ["nothing"], "k": 3},
    "new user": {"user": "nobody", "history": ["映画-1", "映画-4"], "k": 20},
    "new user, gaps": {"history": ["", "映画-1", "nothing", "", "Ärger-2", "映画-4", ""], "k": 7},
    "new user, time": {"history": ["映画-1"], "time": serving_data.START + 9, "k": 12},
    "new user, at home": {"history": ["映画-1", "Ärger-3"], "context_place": "home", "k": 12},
    "new user, on a train": {"history": ["映画-1", "Ärger-3"], "context_place": "train", "k": 12},
    "new user, in a place unheard of": {"history": ["映画-1", "Ärger-3"], "context_place": "moon", "k": 12},
    "new user, long history": {"history": serving_data.ITEMS[:13], "k": 20},
    "held-out user": {"user": "held out", "k": 5},
    "user of the test part": {"user": "only in test", "k": 5},
    "nothing at all": {"k": 20},
    "nothing known": {"user": "nobody", "history": ["nothing"], "exclude": serving_data.ITEMS[:4]},
    "all excluded": {"user": "usér 3", "exclude": [*serving_data.ITEMS, "and one more"]},
    "all but one excluded": {"history": ["映画-1"], "exclude": serving_data.ITEMS[:-1]},
    "everything watched": {"history": serving_data.ITEMS, "k": 3},
    "none wanted": {"user": "usér 3", "k": 0},
    "fewer than none": {"history": ["映画-1"], "k": -3},
}
STOCK, TOLD = ["映画-5", "Ärger-2", "nothing", "映画-0", "", "Ärger-7", "Ärger-9"], ["映画-1", "Ärger-3"]
FURTHER: dict[str, dict[str, Any]] = {
    "what is in stock": {"user": "usér 3", "include_only": STOCK, "k": 20},
    "what is in stock, for a new user": {"history": TOLD, "include_only": STOCK, "k": 4},
    "what is in stock, for nobody": {"include_only": STOCK, "k": 7},
    "in stock and excluded": {"history": TOLD, "include_only": STOCK, "exclude": STOCK[:3], "k": 20},
    "in stock, and all of it excluded": {"history": TOLD, "include_only": STOCK, "exclude": STOCK, "k": 20},
    "in stock, and watched": {"history": TOLD, "include_only": TOLD, "k": 20},
    "nothing that is known in stock": {"history": TOLD, "include_only": ["nothing"], "k": 20},
    "no list of what is in stock": {"history": TOLD, "include_only": ["", ""], "k": 20},
    "the whole catalogue in stock": {"history": TOLD, "include_only": serving_data.ITEMS, "k": 20},
    "one of a source": {"history": TOLD, "quota_two_tower": 1, "k": 20},
    "none of a source": {"user": "usér 8", "quota_item_knn": 0, "k": 20},
    "none of any source": {"history": TOLD, "quota_two_tower": 0, "quota_item_knn": -9, "k": 5},
    "more of a source than there are": {"history": TOLD, "quota_two_tower": 2**40, "quota_item_knn": 2, "k": 20},
    "few of the popular": {"quota_two_tower": 2, "quota_item_knn": 3, "k": 6},
    **{f"diversity {d}": {"history": TOLD, "diversity": d, "k": 9} for d in (0.2, 0.5, 0.8, 1.0, 7.0, -2.0)},
    "diversity of one": {"history": TOLD, "diversity": 0.7, "k": 1},
    "diversity of four": {"user": "usér 2", "diversity": 0.7, "k": 4},
    "diversity of all": {"history": TOLD, "diversity": 0.9, "k": 1_000},
    "diversity of the popular": {"diversity": 0.6, "k": 12},
    "diversity of none": {"history": TOLD, "diversity": 0.5, "exclude": serving_data.ITEMS},
    "all at once": {"history": TOLD, "include_only": STOCK, "quota_item_knn": 4, "diversity": 0.6, "k": 20},
}


@pytest.fixture(scope="module")
def twin(served: dict[str, Any]) -> Twin:
    return Twin(served)


@pytest.fixture(scope="module")
def bundle(served: dict[str, Any]) -> Any:
    """The loaded model; kept, because its functions don't keep it."""
    return tf.saved_model.load(str(served["Exporter"] / "saved_model"))


def short(requests: list[dict[str, Any]], *names: str) -> dict[str, tf.Tensor]:
    """The inputs of a short form."""
    columns: dict[str, Any] = {}
    for name in ("user", "history", "exclude", "time", "k", "context_place"):
        if name in names or name == "context_place":
            default = {"user": "", "time": -1, "k": -1, "context_place": ""}.get(name, [])
            values = [r.get(name, default) for r in requests]
            if isinstance(default, list):
                columns[name] = tf.ragged.constant(values, tf.string, ragged_rank=1).to_tensor("")
            else:
                dtype = {"time": tf.int64, "k": tf.int32}.get(name, tf.string)
                columns[name] = tf.constant(values, dtype, [len(values)])
    return columns


def call(bundle: Any, signature: str, requests: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    if signature == "serving_default":
        import base64

        examples = [base64.b64decode(encode_example(r)) for r in requests]
        inputs = {"examples": tf.constant(examples, tf.string, [len(examples)])}
    else:
        inputs = short(requests, "user", "history", "exclude", "time", "k")
    return {name: value.numpy() for name, value in bundle.signatures[signature](**inputs).items()}


def line(answer: dict[str, np.ndarray], row: int = 0) -> dict[str, list[Any]]:
    """One row of an answer, without padding, which is checked."""
    count = answer["count"][row]
    names = [name for name in ("items", "sources", "reasons") if name in answer]
    texts = {name: [v.decode() for v in answer[name][row]] for name in names}
    assert all(set(values[count:]) <= {""} for values in texts.values())
    assert all("" not in values[:count] for name, values in texts.items() if name != "reasons")
    assert not answer["scores"][row, count:].any()
    assert np.isfinite(answer["scores"]).all()
    return {**{name: values[:count] for name, values in texts.items()}, "scores": answer["scores"][row, :count]}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("signature", ["recommend", "retrieve", "serving_default"])
def test_equals_the_loop(twin: Twin, bundle: Any, signature: str, name: str) -> None:
    request = REQUESTS[name]
    got = line(call(bundle, signature, [request]))
    expected = twin.recommend(request, ranked=signature != "retrieve")
    assert got["items"] == expected["items"]
    assert got["sources"] == expected["sources"]
    assert got.get("reasons", expected["reasons"]) == expected["reasons"]
    np.testing.assert_allclose(got["scores"], expected["scores"], rtol=1e-4)
    assert len(set(got["items"])) == len(got["items"])
    assert (np.diff(got["scores"]) <= 0).all()


@pytest.mark.parametrize("name", FURTHER)
def test_what_an_example_asks_for_besides_equals_the_loop(twin: Twin, bundle: Any, name: str) -> None:
    got, expected = line(call(bundle, "serving_default", [FURTHER[name]])), twin.recommend(FURTHER[name])
    for output in ("items", "sources", "reasons"):
        assert got[output] == expected[output]
    np.testing.assert_allclose(got["scores"], expected["scores"], rtol=1e-4)


def test_what_an_example_asks_for_besides_is_of_its_own_row(bundle: Any) -> None:
    requests = [*FURTHER.values(), {"history": TOLD, "k": 20}, {"history": TOLD, "k": 20, "diversity": float("nan")}]
    together = call(bundle, "serving_default", requests)
    for row, request in enumerate(requests):
        one, other = line(together, row), line(call(bundle, "serving_default", [request]))
        for output in ("items", "sources", "reasons"):
            assert one[output] == other[output]
    nothing, nan = line(together, len(requests) - 2), line(together, len(requests) - 1)
    assert nothing["items"] == nan["items"]
    named = {request_name: line(together, row)["items"] for row, request_name in enumerate(FURTHER)}
    assert nothing["items"] == named["no list of what is in stock"] == named["the whole catalogue in stock"]
    assert set(named["what is in stock, for nobody"]) == {i for i in STOCK if i in serving_data.ITEMS}
    assert [len(named[n]) for n in ("in stock, and all of it excluded", "in stock, and watched")] == [0, 0]
    assert named["nothing that is known in stock"] == []
    assert len({tuple(named[f"diversity {d}"]) for d in (0.2, 0.5, 0.8, 1.0)}) > 2
    assert named["diversity 7.0"] == named["diversity 1.0"]
    assert set(named["diversity 1.0"]) != set(named["diversity of the popular"])


def test_a_thousand_requests_at_once(bundle: Any) -> None:
    requests = [*REQUESTS.values(), *FURTHER.values()]
    requests = [requests[n % len(requests)] for n in range(1024)]
    together = call(bundle, "serving_default", requests)
    for row in (0, 500, 1023):
        assert line(together, row)["items"] == line(call(bundle, "serving_default", [requests[row]]))["items"]


def test_the_cases_reach_what_they_are_for(twin: Twin) -> None:
    """Ranking changes an order, the tail is reached, some item has one proposer, some both, some none."""
    answers = {name: twin.recommend(request) for name, request in REQUESTS.items()}
    assert len(answers["known user, the whole catalogue"]["items"]) == 20 - 15
    assert min(answers["new user"]["scores"]) < -1
    sources = {source for answer in answers.values() for source in answer["sources"]}
    assert sources == {"two_tower", "item_knn", "two_tower+item_knn", "item_knn+two_tower", "popularity"}
    new = REQUESTS["new user"]
    assert answers["new user"]["items"] != twin.recommend(new, ranked=False)["items"]
    assert sorted(answers["new user"]["items"]) == sorted(i for i in serving_data.ITEMS if i not in new["history"])
    assert [len(answers[name]["items"]) for name in ("all excluded", "all but one excluded")] == [0, 1]


@pytest.mark.parametrize("signature", ["recommend", "retrieve", "serving_default"])
def test_a_batch_answers_each_row_as_alone(bundle: Any, signature: str) -> None:
    requests = list(REQUESTS.values())
    together = call(bundle, signature, requests)
    assert together["items"].shape == (len(requests), 20)  # the largest k, cut to the catalogue
    for row, request in enumerate(requests):
        one, other = line(together, row), line(call(bundle, signature, [request]))
        assert one["items"] == other["items"]
        np.testing.assert_allclose(one["scores"], other["scores"], rtol=BATCHING)
    nothing = call(bundle, signature, [])
    assert nothing["items"].shape == (0, 1)
    assert nothing["count"].shape == (0,)


def test_examples_answer_as_the_short_form(bundle: Any) -> None:
    for requests in ([], [{}], list(REQUESTS.values())[:5]):
        short_form, examples = call(bundle, "recommend", requests), call(bundle, "serving_default", requests)
        for name in short_form:
            np.testing.assert_array_equal(short_form[name], examples[name])


def test_a_known_user_is_answered_like_a_new_one_with_that_history(twin: Twin, bundle: Any) -> None:
    stored = twin.stored["usér 4"]
    liked = [r for r in stored if r["rating"] >= 2]
    assert len(liked) < len(stored) == 15
    new = {
        "history": [r["item"] for r in liked],
        "history_time": [r["timestamp"] for r in liked],
        "history_rating": [r["rating"] for r in liked],
        "exclude": [r["item"] for r in stored],
    }
    known, told = (call(bundle, "serving_default", [r]) for r in ({"user": "usér 4"}, new))
    for name in known:
        np.testing.assert_array_equal(known[name], told[name])


def test_history_times_are_used_and_an_absent_one_is_the_requests(twin: Twin, bundle: Any) -> None:
    history, time = ["映画-1", "Ärger-3", "映画-4"], twin.now + 500
    for times in ([time - 90_000_000, time - 40_000, -1], [time - 90_000_000], [5, 6, 7, 8, 9]):
        request = {"history": history, "history_time": times, "time": time, "k": 6}
        got = line(call(bundle, "serving_default", [request]))
        expected = twin.recommend(request)
        assert got["items"] == expected["items"]
        np.testing.assert_allclose(got["scores"], expected["scores"], rtol=1e-4)
    recent, old = (
        call(bundle, "serving_default", [{"history": history, "history_time": [t] * 3, "time": time}])["scores"]
        for t in (-1, 5)
    )
    assert np.abs(recent / old - 1).max() > 0.01


@pytest.mark.parametrize("name", ["known user", "new user", "new user, time", "nothing at all", "nothing known"])
def test_rank_equals_the_loop(twin: Twin, bundle: Any, name: str) -> None:
    request = {n: v for n, v in REQUESTS[name].items() if n != "exclude"}
    shown = twin.recommend(request)["items"][:4]
    candidates = [
        serving_data.ITEMS[19],
        "nothing",
        *shown,
        "",
        serving_data.ITEMS[0],
        shown[1],
        serving_data.ITEMS[19],
    ]
    inputs = {**short([request], "user", "history", "time"), "candidates": tf.constant([candidates])}
    got = bundle.signatures["rank"](**inputs)["scores"].numpy()
    np.testing.assert_allclose(got, [twin.rank(request, candidates)], rtol=1e-4)
    assert got[0, [1, 6]].tolist() == [0, 0]
    assert got[0, 3] == pytest.approx(got[0, 8], rel=1e-6)


def test_the_context_moves_the_order_and_an_unknown_one_is_none(twin: Twin, bundle: Any) -> None:
    home, train, moon = (REQUESTS[f"new user, {where}"] for where in ("at home", "on a train", "in a place unheard of"))
    at_home, on_train, on_moon = (line(call(bundle, "recommend", [r])) for r in (home, train, moon))
    assert np.abs(at_home["scores"] / on_train["scores"] - 1).max() > 0.01
    nowhere = line(call(bundle, "recommend", [{k: v for k, v in home.items() if k != "context_place"}]))
    assert on_moon["items"] == nowhere["items"]
    np.testing.assert_array_equal(on_moon["scores"], nowhere["scores"])


def test_rank_agrees_with_recommend_on_the_shortlist(bundle: Any) -> None:
    requests = [REQUESTS["known user"], REQUESTS["new user, time"]]
    answer = call(bundle, "recommend", [{**r, "k": 5} for r in requests])
    inputs = {**short(requests, "user", "history", "time"), "candidates": tf.constant(answer["items"][:, ::-1])}
    got = bundle.signatures["rank"](**inputs)["scores"].numpy()
    np.testing.assert_allclose(got[:, ::-1], answer["scores"], rtol=1e-5)
    nothing = {**short([], "user", "history", "time"), "candidates": tf.zeros([0, 3], tf.string)}
    assert bundle.signatures["rank"](**nothing)["scores"].shape == (0, 3)


def test_similar_items_are_the_nearest_by_cosine(twin: Twin, bundle: Any) -> None:
    vectors = twin.vectors["two_tower"]
    asked = {"映画-3": 4, "Ärger-0": 100, "nothing": 5, "": 5, "映画-7": -1, "映画-8": 0}
    got = bundle.signatures["similar_items"](item=tf.constant(list(asked)), k=tf.constant(list(asked.values())))
    got = {name: value.numpy() for name, value in got.items()}
    assert got["items"].shape == (6, 20)
    for row, (item, k) in enumerate(asked.items()):
        own = twin.row.get(item)
        alike = {i: oracles.cosine(vectors[i], vectors[own]) for i in range(2, 22) if i != own} if own else {}
        best = sorted(alike, key=lambda i: -alike[i])[: 10 if k == -1 else k]
        answer = line(got, row)
        assert answer["items"] == [twin.ids[i] for i in best]
        np.testing.assert_allclose(answer["scores"], [alike[i] for i in best], rtol=1e-4)
    nothing = bundle.signatures["similar_items"](item=tf.zeros([0], tf.string), k=tf.zeros([0], tf.int32))
    assert nothing["items"].shape == (0, 1)


def test_unknown_features_are_ignored_and_broken_examples_refused(bundle: Any) -> None:
    request = {"user": "usér 3", "context_mood": "rainy", "quota_wals": 7, "impressions": ["a", "b"]}
    got = call(bundle, "serving_default", [request])
    np.testing.assert_array_equal(got["items"], call(bundle, "serving_default", [{"user": "usér 3"}])["items"])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Could not parse example input"):
        bundle.signatures["serving_default"](examples=tf.constant(["not an example"]))
    for name, value in {"user": 3, "k": "ten", "history_time": "now", "diversity": 1, "quota_item_knn": 0.5}.items():
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"Key: {name}"):
            call(bundle, "serving_default", [{name: value}])
    inputs = short([{"user": "usér 3"}] * 2, "user", "history", "exclude", "time", "k")
    with pytest.raises(tf.errors.InvalidArgumentError, match="`k` must have one row a request"):
        bundle.signatures["recommend"](**{**inputs, "k": tf.constant([3])})


texts = st.sampled_from(["", "nothing", "usér 3", "映画-1", "Ärger-2", "映画-4", "\x00", "a\nb"]) | st.text(max_size=5)
numbers = st.sampled_from([-(2**63), 2**63 - 1, -1, 0, serving_data.START]) | st.integers(-5, 30)
examples = st.fixed_dictionaries(
    {},
    optional={
        "user": texts,
        "history": st.lists(texts, min_size=1, max_size=6),
        "history_time": st.lists(numbers, min_size=1, max_size=6),
        "time": numbers,
        "exclude": st.lists(texts, min_size=1, max_size=6),
        "include_only": st.lists(texts, min_size=1, max_size=6),
        "quota_item_knn": numbers,
        "diversity": st.floats(width=32),
        "k": numbers,
    },
)


@settings(max_examples=60, deadline=None)
@given(st.lists(examples, max_size=3))
def test_any_request_is_answered_with_numbers(bundle: Any, requests: list[dict[str, Any]]) -> None:
    answer = call(bundle, "serving_default", requests)
    for row, request in enumerate(requests):
        got = line(answer, row)
        refused = {*request.get("history", []), *request.get("exclude", [])}
        assert not refused & set(got["items"])
        assert not any(request.get("include_only", [])) or set(got["items"]) <= set(request["include_only"])
        assert len(got["items"]) <= max(request.get("k", 10), 10 if request.get("k") == -1 else 0)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_answered_or_refused(bundle: Any, data: bytes) -> None:
    try:
        answer = bundle.signatures["serving_default"](examples=tf.constant([data]))
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):  # of an error's text, which repeats the bytes
        return
    assert np.isfinite(answer["scores"]).all()


def test_assets_and_ids(served: dict[str, Any], bundle: Any) -> None:
    assets = served["Exporter"] / "saved_model" / "assets"
    ids = (assets / "items.txt").read_text("utf-8").splitlines()
    assert sorted(ids) == sorted(serving_data.ITEMS)
    assert (assets / "titles.txt").read_text("utf-8").splitlines() == [f"„{item}“ заголовок" for item in ids]
    answer = call(bundle, "retrieve", [{"k": 20}])
    assert sorted(i.decode() for i in answer["items"][0]) == sorted(ids)


def test_records_answer_for_every_signature(served: dict[str, Any], bundle: Any) -> None:
    records = served["Exporter"].read_json("requests.json")
    assert records["signatures"] == sorted(bundle.signatures)
    by_name = {n: [r for r in records["requests"] if r["signature_name"] == n] for n in records["signatures"]}
    assert {n: len(found) for n, found in by_name.items()} == dict.fromkeys(records["signatures"], 29)
    counts = [r["outputs"]["count"][0] for r in by_name["recommend"][:-1]]
    assert min(counts) == 0
    assert max(counts) == 20
    batch = by_name["recommend"][-1]
    inputs = {n: tf.constant(v, {"k": tf.int32, "time": tf.int64}.get(n)) for n, v in batch["inputs"].items()}
    got = bundle.signatures["recommend"](**inputs)
    assert [[i.decode() for i in row] for row in got["items"].numpy()] == batch["outputs"]["items"]
    kinds = {s for r in by_name["serving_default"] for row in r["outputs"]["sources"] for s in row}
    assert {"", "popularity", "two_tower"} < kinds


def test_the_page_names_every_input_output_and_feature(served: dict[str, Any], bundle: Any) -> None:
    page = (served["Exporter"] / "signatures.md").read_text("utf-8")
    for name, function in bundle.signatures.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for put in (*function.structured_input_signature[1], *function.structured_outputs):
            assert section.count(f"\n| `{put}` |") == 1, (name, put)
    features = page.split("\n## Features of an example\n")[1]
    named = ["user", "history", "history_time", "history_rating", "time", "exclude", "k", "context_place"]
    named += ["include_only", "diversity", *(f"quota_{name}" for name in NAMES)]
    assert sorted(text.split("`")[1] for text in features.splitlines() if text.startswith("| `")) == sorted(named)
    for feature in served["CandidateGenerator"].read_json("candidates.json")["feature_names"]:
        assert f"`{feature}`" in features
    assert "docker run --rm -p 8501:8501 -v DESTINATION/shortlist:/models/shortlist -e MODEL_NAME=shortlist" in page


def test_a_refit_serves_what_the_measured_sources_did_not_know(served: dict[str, Any]) -> None:
    workdir = served["Exporter"].uri.parents[2]
    again = serving_data.build(workdir, refit=True)
    assert again["Ranker"] == served["Ranker"]
    bundle = tf.saved_model.load(str(again["Exporter"] / "saved_model"))
    answer = line(call(bundle, "recommend", [{"history": ["only in test"], "k": 21}]))
    assert sorted(answer["items"]) == sorted(serving_data.ITEMS)
    assert "popularity" not in answer["sources"]
    user = line(call(bundle, "recommend", [{"user": "only in test", "k": 21}]))
    assert sorted([*user["items"], serving_data.ITEMS[0]]) == sorted([*serving_data.ITEMS, "only in test"])

    # The ranker keeps the item rows that it was trained with, whatever those of the new catalogue are.
    twin = Twin(again, "all")
    rows = served["Ranker"].uri, again["Transform.all"].uri
    known, catalogue = ((folder / "items.txt").read_text("utf-8").splitlines() for folder in rows)
    assert known != catalogue[: len(known)]
    assert set(catalogue) - set(known) == {"only in test"}
    for request in ({"user": "usér 4"}, {"user": "usér 0", "k": 21}, {"history": ["only in test", "映画-1"], "k": 21}):
        got, expected = line(call(bundle, "serving_default", [request])), twin.recommend(request)
        assert got["items"] == expected["items"]
        np.testing.assert_allclose(got["scores"], expected["scores"], rtol=1e-4)
        candidates = [serving_data.ITEMS[19], "only in test", *got["items"][:2]]
        inputs = {**short([request], "user", "history", "time"), "candidates": tf.constant([candidates])}
        ranked = bundle.signatures["rank"](**inputs)["scores"].numpy()
        np.testing.assert_allclose(ranked, [twin.rank(request, candidates)], rtol=1e-4)
    twin.ranker_row = {row: min(row, len(known) + 1) for row in twin.ranker_row}
    wrong = twin.rank(request, candidates)
    assert np.abs(np.array(wrong) / ranked[0] - 1).max() > 0.01


def run(served: dict[str, Any], out: Path, **changed: Any) -> str:
    """The refusal of an export with other inputs."""
    sources = {name: served[f"RetrievalIndex.{name}_train"] for name in NAMES}
    inputs = {
        "encoded": served["Transform.train"],
        "sources": sources,
        "candidates": served["CandidateGenerator"],
        "ranker": served["Ranker"],
        **changed,
    }
    with pytest.raises(ShortlistError) as error:
        Exporter(ExporterConfig()).run(out, **inputs)
    assert "\n" not in str(error.value)
    assert not list(out.iterdir())
    return str(error.value)


def changed(artifact: Artifact, folder: Path, **inputs: str) -> Artifact:
    """A copy whose lineage names other parents."""
    shutil.copytree(artifact.uri, folder)
    lineage = artifact.read_json("lineage.json")
    for name, fingerprint in inputs.items():
        lineage["inputs"][name]["fingerprint"] = fingerprint
    (folder / "lineage.json").write_text(json.dumps(lineage))
    return type(artifact)(folder, artifact.fingerprint)


def test_refuses_parts_that_do_not_belong_together(served: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ranker = changed(served["Ranker"], tmp_path / "ranker", candidates="another")
    assert isinstance(ranker, Model)
    assert "`ranker` (Model) was not made from" in run(served, out, ranker=ranker)
    indexes = {name: served[f"RetrievalIndex.{name}_train"] for name in NAMES}
    other = changed(indexes["item_knn"], tmp_path / "index", encoded="another")
    assert isinstance(other, Index)
    assert "`index` (Index) was not made from" in run(served, out, sources={**indexes, "item_knn": other})
    message = run(served, out, sources=dict(reversed(indexes.items())))
    assert message == (
        "`sources` must be those of the candidates, in their order: two_tower, item_knn. Received: item_knn, two_tower."
    )
    candidates = changed(served["CandidateGenerator"], tmp_path / "candidates")
    assert isinstance(candidates, Candidates)
    info = candidates.read_json("candidates.json")
    info["feature_names"][3] = "moonlight"
    (candidates / "candidates.json").write_text(json.dumps(info))
    message = run(served, out, candidates=candidates)
    assert message.startswith("`ranker` must be given the features that it was trained with;")
    assert message.endswith("Received: a difference in log_rank:item_knn, moonlight.")


def test_without_item_vectors_there_are_no_similar_items(served: dict[str, Any]) -> None:
    encoded = served["Transform.train"]
    data = EncodedData(encoded)
    features = RankingFeatures(describe_catalogue(data, 3.0), {}, ("item_knn",), LENGTH)
    source = tf.saved_model.load(str(served["RetrievalIndex.item_knn_train"] / "index"))
    popularity = np.zeros(data.num_items)
    first_stage = Shortlist({"item_knn": source}, {"item_knn": 3}, 3, popularity, features, data.kinds)
    files = {"item_file": str(encoded / "items.txt"), "user_file": str(encoded / "users.txt")}
    stored = store(data.rows("train"), data)
    ranker = SimpleNamespace(score=lambda features, *_: dict.fromkeys(("odds", "expected"), features[..., 0]))
    servable = Servable(
        first_stage,
        ranker,
        **files,
        title_file=files["item_file"],
        item_ids=data.items["id"],
        stored=stored,
        now=0,
        reader=RequestReader(data.state["request"], str(encoded.uri), of_users(data)),
    )
    assert list(servable.interface) == ["serving_default", "recommend", "retrieve", "rank"]


def test_store_keeps_known_ids_in_time_order(served: dict[str, Any], twin: Twin) -> None:
    data = EncodedData(served["Transform.train"])
    stored = store(data.rows(*data.artifact.names), data)
    ids, users = data.items["id"], ["", "", *(served["Transform.train"] / "users.txt").read_text("utf-8").splitlines()]
    assert stored.splits[2] == 0  # of padding and strangers nothing is kept
    assert len(stored.splits) == len(users) + 1
    for row, user in enumerate(users[2:], 2):
        mine = slice(*stored.splits[row : row + 2])
        entries = [(e["item"], e["timestamp"], e["rating"] >= 2, True, e["rating"]) for e in twin.stored[user]]
        columns = (stored.time, stored.positive, stored.watched, stored.weight)
        assert list(zip(ids[stored.item[mine]], *(c[mine] for c in columns), strict=True)) == entries
