"""A bundle with CAMF behind user splitting, where shortlist cannot be imported, against the Python model."""

import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import serving_data
import tensorflow as tf
from serving_twin import Twin

from shortlist.models import discover

QUOTA = {"camf": 7}
SERVED = """
import pickle, sys
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "shortlist":
            raise ImportError("shortlist is hidden")

sys.meta_path.insert(0, Hidden())
import tensorflow as tf
folder, requests = sys.argv[1], Path(sys.argv[2])
bundle = tf.saved_model.load(folder)
answers = []
for columns in pickle.loads(requests.read_bytes()):
    inputs = {name: tf.constant(*given) for name, given in columns.items()}
    answers.append({name: value.numpy() for name, value in bundle.signatures["recommend"](**inputs).items()})
assert "shortlist" not in sys.modules
requests.with_suffix(".answers").write_bytes(pickle.dumps(answers))
"""
PLACES = ("", "home", "train", "moon")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return serving_data.build(tmp_path_factory.mktemp("context"), quota=QUOTA)


@pytest.fixture(scope="module")
def model(served: dict[str, Any]) -> Any:
    discover()
    return tf.keras.models.load_model(str(served["Trainer.camf"] / "model.keras"))


@pytest.fixture(scope="module")
def requests(served: dict[str, Any]) -> list[dict[str, Any]]:
    """Each user that is split, and one that isn't, in every place; and one that nobody knows."""
    split = pq.read_table(served["Trainer.camf"] / "context_splits.parquet").to_pydict()
    assert len(split["id"]) >= 4
    assert set(split["side"]) == {"user"}
    assert set(split["condition"]) == {"place=home", "place=train"}
    whole = next(f"usér {n}" for n in range(24) if f"usér {n}" not in split["id"])
    known = [{"user": user, "context_place": place} for user in [*split["id"][:4], whole] for place in PLACES]
    new = [{"user": "nobody", "history": ["映画-1", "Ärger-3"], "context_place": place} for place in PLACES]
    return [{"k": 12, **request} for request in [*known, *new]]


@pytest.fixture(scope="module")
def answers(served: dict[str, Any], requests: list[dict[str, Any]], tmp_path_factory: Any) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fresh")
    batches = []
    for request in requests:
        columns: dict[str, Any] = {name: ([request.get(name, "")], tf.string) for name in ("user", "context_place")}
        columns |= {name: ([request.get(name, [""])], tf.string) for name in ("history", "exclude")}
        batches.append({**columns, "time": ([-1], tf.int64), "k": ([request["k"]], tf.int32)})
    (folder / "requests").write_bytes(pickle.dumps(batches))
    command = [sys.executable, "-c", SERVED, str(served["Exporter"] / "saved_model"), str(folder / "requests")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return pickle.loads((folder / "requests.answers").read_bytes())


def test_it_equals_the_python_model(
    served: dict[str, Any], model: Any, requests: list[dict[str, Any]], answers: list[dict[str, Any]]
) -> None:
    source = SimpleNamespace(scores=model.score_items, item_vectors=model.item_vectors)
    twin = Twin(served, quota=QUOTA, sources={"camf": source})
    for request, answer in zip(requests, answers, strict=True):
        expected = twin.recommend(request)
        count = answer["count"][0]
        assert count == len(expected["items"])
        assert [item.decode() for item in answer["items"][0, :count]] == expected["items"]
        np.testing.assert_allclose(answer["scores"][0, :count], expected["scores"], rtol=1e-5, atol=1e-6)


def test_the_context_counts_and_an_unknown_one_is_none(
    requests: list[dict[str, Any]], answers: list[dict[str, Any]]
) -> None:
    for start in range(0, len(requests), len(PLACES)):
        nothing, home, train, moon = answers[start : start + len(PLACES)]
        for name in ("items", "scores", "count"):
            np.testing.assert_array_equal(nothing[name], moon[name])
        assert any((home[name] != train[name]).any() for name in ("items", "scores"))


def test_a_split_user_is_another_in_its_condition(served: dict[str, Any], model: Any) -> None:
    """The rows of both halves are trained: without a context, and with one that is not the split's, it is the rest."""
    table = pq.read_table(served["Trainer.camf"] / "context_splits.parquet").to_pylist()
    lines = lambda name: (served["Transform.train"] / name).read_text("utf-8").splitlines()  # noqa: E731
    users, places = lines("users.txt"), lines("context_place.txt")
    for number, split in enumerate(table):
        row, condition = users.index(split["id"]) + 2, places.index(split["condition"].removeprefix("place=")) + 2
        asked = {"user": tf.fill([2 + len(places)], row), "context_place": tf.range(2 + len(places))}
        chosen = model._rows(asked)["user"].numpy()
        expected = np.full(2 + len(places), row)
        expected[condition] = model.num_users + number
        np.testing.assert_array_equal(chosen, expected)
        bias = model.model.user_bias.numpy()
        assert bias[row] != bias[model.num_users + number] != 0
    notes = served["Trainer.camf"].read_json("model.json")["notes"]
    assert notes == [f"{len(table)} of 24 users are split by context."]
