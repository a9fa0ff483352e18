"""What a bundle with WALS answers besides, against the Python model and against loops."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import serving_data
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.components.artifacts import Bundle
from shortlist.components.infra_validator import InfraValidator
from shortlist.models import discover

EXACT: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
NAMES = ("explain", "fold_in", "similar_users")


class Twin:
    """Answers by the model as its trainer saved it, and loops."""

    def __init__(self, served: dict[str, Any]):
        discover()
        self.model = tf.keras.models.load_model(str(served["Trainer.wals"] / "model.keras"))
        read = lambda name: (served["Transform.train"] / name).read_text("utf-8").splitlines()  # noqa: E731
        self.items, self.users = ["", "", *read("items.txt")], ["", "", *read("users.txt")]

    def cells(self, history: list[str], weights: list[float] | None = None) -> dict[int, float]:
        """Known rows with their confidences: what is said is added up, 1 where nothing is."""
        said: dict[int, list[float]] = {}
        for item, weight in zip(history, weights or [-1.0] * len(history), strict=True):
            if item and item in self.items:
                said.setdefault(self.items.index(item), []).extend([weight] if weight >= 0 else [])
        return {row: sum(values) if values else 1.0 for row, values in said.items()}

    def fold_in(self, history: list[str], weights: list[float], k: int) -> tuple[list[str], list[float]]:
        cells = self.cells(history, weights)
        if not any(cells.values()):
            return [], []
        vector = self.model.fold_in([list(cells)], [list(cells.values())]).numpy()[0]
        score = {i: float(vector @ self.model.item_factors.numpy()[i]) for i in range(2, len(self.items))}
        best = sorted((i for i in score if i not in cells), key=lambda i: -score[i])[: 10 if k == -1 else max(k, 0)]
        return [self.items[i] for i in best], [score[i] for i in best]

    def explain(self, history: list[str], item: str) -> list[float]:
        cells = list(self.cells(history))
        if not cells or not item or item not in self.items:
            return [0.0] * len(history)
        parts = self.model.explain([cells], [self.items.index(item)]).numpy()[0]
        left = {self.items[row]: float(part) for row, part in zip(cells, parts, strict=True)}
        return [left.pop(i, 0.0) for i in history]

    def similar_users(self, user: str, k: int) -> tuple[list[str], list[float]]:
        if not user or user not in self.users:
            return [], []
        vectors, own = self.model.user_factors.numpy(), self.users.index(user)
        alike = {u: oracles.cosine(vectors[u], vectors[own]) for u in range(2, len(vectors)) if u != own}
        best = sorted(alike, key=lambda u: -alike[u])[: 10 if k == -1 else max(k, 0)]
        return [self.users[u] for u in best], [alike[u] for u in best]


@pytest.fixture(scope="module")
def twin(served_wals: dict[str, Any]) -> Twin:
    return Twin(served_wals)


@pytest.fixture(scope="module")
def bundle(served_wals: dict[str, Any]) -> Any:
    """The loaded model; kept, because its functions don't keep it."""
    return tf.saved_model.load(str(served_wals["Exporter"] / "saved_model"))


Case = tuple[list[str], list[float], int]


def padded(lists: list[list[Any]], dtype: tf.DType, pad: Any) -> tf.Tensor:
    width = max([1, *map(len, lists)])
    return tf.constant([[*values, *[pad] * (width - len(values))] for values in lists], dtype, [len(lists), width])


def fold_in(bundle: Any, cases: list[Case]) -> dict[str, np.ndarray]:
    answer = bundle.signatures["fold_in"](
        history=padded([c[0] for c in cases], tf.string, ""),
        weights=padded([c[1] for c in cases], tf.float32, -1.0),
        k=tf.constant([c[2] for c in cases], tf.int32, [len(cases)]),
    )
    return {name: value.numpy() for name, value in answer.items()}


def explain(bundle: Any, cases: list[tuple[list[str], str]]) -> np.ndarray:
    items = tf.constant([c[1] for c in cases], tf.string, [len(cases)])
    histories = padded([c[0] for c in cases], tf.string, "")
    return bundle.signatures["explain"](history=histories, item=items)["contributions"].numpy()


def similar_users(bundle: Any, cases: list[tuple[str, int]]) -> dict[str, np.ndarray]:
    users = tf.constant([c[0] for c in cases], tf.string, [len(cases)])
    answer = bundle.signatures["similar_users"](
        user=users, k=tf.constant([c[1] for c in cases], tf.int32, [len(cases)])
    )
    return {name: value.numpy() for name, value in answer.items()}


def check(answer: dict[str, np.ndarray], name: str, expected: list[tuple[list[str], list[float]]]) -> None:
    """Every row, its padding too; ids whose scores agree within rounding may change places."""
    assert answer["count"].tolist() == [len(ids) for ids, _ in expected]
    assert answer[name].shape == answer["scores"].shape == (len(expected), answer["scores"].shape[1])
    for row, (ids, scores) in enumerate(expected):
        count = len(ids)
        np.testing.assert_allclose(answer["scores"][row, :count], scores, **EXACT)
        assert not answer["scores"][row, count:].any()
        assert set(answer[name][row, count:]) <= {b""}
        got = [v.decode() for v in answer[name][row, :count]]
        assert len(set(got)) == count
        places = {name: place for place, name in enumerate(ids)}
        for place, one in enumerate(got):
            if ids[place] != one:
                other = scores[places[one]] if one in places else scores[-1]
                assert other == pytest.approx(scores[place], rel=1e-5, abs=1e-6)


FOLDED: list[Case] = [
    (["映画-1", "映画-4"], [1.0, 1.0], 5),
    (["映画-1", "映画-4"], [1.0, 3.5], 5),
    (["", "映画-1", "nothing", "", "Ärger-2"], [7.0, 2.0, 9.0, -1.0, -1.0], 30),
    (["映画-1", "Ärger-3", "映画-1", "映画-1"], [0.5, 2.0, 1.5, -1.0], 4),  # 映画-1 has 2
    (["映画-1", "Ärger-3", "映画-1"], [-1.0, -1.0, -1.0], 4),  # both have 1
    (["映画-1", "Ärger-3"], [0.0, 1.0], 3),  # a weight of 0 only takes an item out
    (["映画-1", "Ärger-3"], [0.0, 0.0], 3),
    (["nothing", ""], [1.0, 1.0], 3),
    (["nothing", "映画-8"], [float("nan"), 1.0], 3),  # what is unknown says nothing, whatever its weight
    ([], [], 3),
    (["映画-2"], [1.0], -1),
    (["映画-2"], [1.0], 0),
    (["映画-2"], [1.0], -9),
    (serving_data.ITEMS, [1.0] * 20, 3),
    (serving_data.ITEMS[:19], [0.25] * 19, 3),
]


def test_fold_in_equals_the_model(twin: Twin, bundle: Any) -> None:
    expected = [twin.fold_in(*case) for case in FOLDED]
    counts = [len(ids) for ids, _ in expected]
    assert counts == [5, 5, 18, 4, 4, 3, 0, 0, 3, 0, 10, 0, 0, 0, 1]
    check(fold_in(bundle, FOLDED), "items", expected)
    for case, own in zip(FOLDED, expected, strict=True):
        check(fold_in(bundle, [case]), "items", [own])
    assert expected[0] != expected[1]
    nothing = fold_in(bundle, [])
    assert nothing["items"].shape == nothing["scores"].shape == (0, 1)
    assert nothing["count"].shape == (0,)


EXPLAINED = [
    (["映画-1", "映画-4", "Ärger-0"], "映画-3"),
    (["", "映画-1", "nothing", "Ärger-2", "映画-1", ""], "映画-3"),
    (["映画-1", "映画-3"], "映画-3"),
    (["映画-1", "映画-4"], "nothing"),
    (["映画-1", "映画-4"], ""),
    (["nothing"], "映画-3"),
    ([], "映画-3"),
    (serving_data.ITEMS, "Ärger-9"),
]


def test_explain_equals_the_model_and_adds_up_to_fold_in(twin: Twin, bundle: Any) -> None:
    answer = explain(bundle, EXPLAINED)
    assert answer.shape == (8, 20)
    for row, (history, item) in enumerate(EXPLAINED):
        expected = twin.explain(history, item)
        assert any(expected) == (row in (0, 1, 2, 7))
        np.testing.assert_allclose(answer[row, : len(history)], expected, **EXACT)
        assert not answer[row, len(history) :].any()
        np.testing.assert_allclose(explain(bundle, [(history, item)])[0, : len(history)], expected, **EXACT)
    history, item = EXPLAINED[1]
    assert [bool(part) for part in answer[1, :6]] == [False, True, False, True, False, False]
    ids, scores = twin.fold_in(history, [-1.0] * 6, 20)
    assert answer[1].sum() == pytest.approx(scores[ids.index(item)], rel=1e-5)
    assert explain(bundle, []).shape == (0, 1)


def test_similar_users_are_the_nearest_by_cosine(twin: Twin, bundle: Any) -> None:
    cases = [("usér 3", 4), ("usér 8", 100), ("nobody", 5), ("", 5), ("held out", 5), ("usér 0", -1), ("usér 5", 0)]
    expected = [twin.similar_users(*case) for case in cases]
    assert [len(users) for users, _ in expected] == [4, 23, 0, 0, 0, 10, 0]
    check(similar_users(bundle, cases), "users", expected)
    check(similar_users(bundle, cases[1:2]), "users", expected[1:2])
    assert similar_users(bundle, [])["users"].shape == (0, 1)


texts = st.sampled_from(["", "nothing", "\x00", *serving_data.ITEMS[:8]])
weights = st.sampled_from([-1.0, 0.0, 1.0]) | st.floats(0.125, 4, width=32)  # more cost float32 its digits
histories = st.lists(st.tuples(texts, weights), max_size=6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(histories, st.integers(-2, 25), texts), max_size=3))
def test_any_history_equals_the_model(
    twin: Twin, bundle: Any, rows: list[tuple[list[tuple[str, float]], int, str]]
) -> None:
    cases = [([i for i, _ in pairs], [w for _, w in pairs], k) for pairs, k, _ in rows]
    check(fold_in(bundle, cases), "items", [twin.fold_in(*case) for case in cases])
    answer = explain(bundle, [(case[0], item) for case, (_, _, item) in zip(cases, rows, strict=True)])
    for parts, case, (_, _, item) in zip(answer, cases, rows, strict=True):
        np.testing.assert_allclose(parts[: len(case[0])], twin.explain(case[0], item), **EXACT)


@pytest.mark.parametrize("weight", [-0.5, -2.0, float("nan"), float("inf"), -float("inf")])
def test_wrong_weights_are_refused(bundle: Any, weight: float) -> None:
    rule = "`weights` must be finite and not negative; give -1 for the usual 1."
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(rule)):
        fold_in(bundle, [(["映画-1"], [1.0], 3), (["映画-1", "映画-2"], [1.0, weight], 3)])


def test_shapes_that_do_not_fit_are_refused(bundle: Any) -> None:
    history, k = tf.constant([["映画-1", "映画-2"]]), tf.constant([3])
    with pytest.raises(tf.errors.InvalidArgumentError, match="`weights` must have the shape of `history`"):
        bundle.signatures["fold_in"](history=history, weights=tf.ones([1, 1]), k=k)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`k` must have one row a request"):
        bundle.signatures["fold_in"](history=history, weights=tf.ones([1, 2]), k=tf.constant([3, 3]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="`item` must have one row a request"):
        bundle.signatures["explain"](history=history, item=tf.constant(["映画-1", "映画-2"]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="`k` must have one row a request"):
        bundle.signatures["similar_users"](user=tf.constant(["usér 3"]), k=tf.constant([3, 3]))


def test_weights_that_overflow_are_never_answered_with_nan(bundle: Any) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"not finite|Cholesky decomposition was not successful"):
        fold_in(bundle, [(["映画-1"], [3e38], 3)])


def test_the_validator_asks_them_in_a_process_without_shortlist(
    served_wals: dict[str, Any], twin: Twin, tmp_path: Path
) -> None:
    """And what it compares with is what the model says."""
    bundle = Bundle(tmp_path / "bundle", "fingerprint")
    shutil.copytree(served_wals["Exporter"].uri, bundle.uri)
    out = tmp_path / "out"
    out.mkdir()
    InfraValidator().run(out, bundle)
    records = bundle.read_json("requests.json")
    blessing = (out / "blessing.json").read_text()
    assert '"blessed": true' in blessing
    assert f'"requests": {len(records["requests"])}' in blessing
    asked = {n: [r for r in records["requests"] if r["signature_name"] == n] for n in NAMES}
    assert {n: len(found) for n, found in asked.items()} == dict.fromkeys(NAMES, 29)
    assert sorted(records["signatures"]) == sorted([*NAMES, *served_names()])
    filled = 0
    for record in asked["fold_in"]:
        given = record["inputs"]
        rows = list(zip(given["history"], given["weights"], given["k"], strict=True))
        expected = [twin.fold_in(*row) for row in rows]
        check(as_bytes(record["outputs"], "items"), "items", expected)
        filled += sum(bool(ids) for ids, _ in expected)
    assert filled > 10
    for record in asked["explain"]:
        rows = list(zip(record["inputs"]["history"], record["inputs"]["item"], strict=True))
        expected = [twin.explain(*row) for row in rows]
        np.testing.assert_allclose(record["outputs"]["contributions"], expected, **EXACT)
        filled += np.any(expected)
    assert filled > 15
    for record in asked["similar_users"]:
        rows = list(zip(record["inputs"]["user"], record["inputs"]["k"], strict=True))
        check(as_bytes(record["outputs"], "users"), "users", [twin.similar_users(*row) for row in rows])


def served_names() -> list[str]:
    return ["rank", "recommend", "retrieve", "serving_default", "similar_items"]


def as_bytes(outputs: dict[str, Any], name: str) -> dict[str, np.ndarray]:
    """A recorded answer as a signature gives it."""
    texts = np.array([[v.encode() for v in row] for row in outputs[name]], object)
    return {name: texts, "scores": np.float32(outputs["scores"]), "count": np.int32(outputs["count"])}


def test_the_page_describes_them(served_wals: dict[str, Any], bundle: Any) -> None:
    page = (served_wals["Exporter"] / "signatures.md").read_text("utf-8")
    shapes = {
        "fold_in": {"history": "string [B, L]", "weights": "float32 [B, L]", "k": "int32 [B]"},
        "explain": {"history": "string [B, L]", "item": "string [B]", "contributions": "float32 [B, L]"},
        "similar_users": {"user": "string [B]", "k": "int32 [B]", "users": "string [B, M]", "count": "int32 [B]"},
    }
    for name, named in shapes.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        function = bundle.signatures[name]
        for put in (*function.structured_input_signature[1], *function.structured_outputs):
            assert section.count(f"\n| `{put}` |") == 1, (name, put)
        assert all(f"\n| `{put}` | {shape} | " in section for put, shape in named.items())
        assert "stored of the user" not in section
    assert "| `user` | string [B] | id of the user; an unknown one has no neighbours | absent |" in page
