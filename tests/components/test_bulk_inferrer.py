"""Many users at once: the signature's answers, in files that are whole, resumed where they were left."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components import bulk_inferrer
from shortlist.components._engine import EngineConfig, engine_of
from shortlist.components.bulk_inferrer import BulkConfig, Predicted, predict, read_users


@pytest.fixture(scope="module")
def model(served: dict[str, Any]) -> Path:
    return Path(served["Exporter"].uri / "saved_model")


def read(out: Path) -> list[dict[str, Any]]:
    return [row for part in sorted(out.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def test_all_users_are_answered_as_the_signature_answers_each(model: Path, tmp_path: Path) -> None:
    users = np.append(read_users("all", model), ["a new one", "another ünknown"])
    assert predict(model, users, tmp_path / "out", BulkConfig(k=7, shard=10, batch_size=4)) == Predicted(26, 3, 26)
    names = [f"part-0000{n}-of-00003.parquet" for n in range(3)]
    assert [path.name for path in sorted((tmp_path / "out").glob("*.parquet"))] == names
    rows = read(tmp_path / "out")
    assert [row["user"] for row in rows] == users.tolist()
    recommend = tf.saved_model.load(str(model)).signatures["recommend"]
    for row in rows:
        answer = recommend(
            user=tf.constant([row["user"]]),
            history=tf.constant([[""]]),
            exclude=tf.constant([[""]]),
            context_place=tf.constant([""]),
            time=tf.constant([-1], tf.int64),
            k=tf.constant([7], tf.int32),
        )
        count = int(answer["count"][0])
        assert count > 0
        assert row["items"] == [v.decode() for v in answer["items"][0].numpy()[:count]]
        assert row["sources"] == [v.decode() for v in answer["sources"][0].numpy()[:count]]
        np.testing.assert_allclose(row["scores"], answer["scores"][0].numpy()[:count], rtol=1e-6)


def test_the_size_of_batches_and_files_changes_no_answer(model: Path, tmp_path: Path) -> None:
    users = read_users("all", model)
    answers = []
    for n, config in enumerate([BulkConfig(), BulkConfig(shard=5, batch_size=3), BulkConfig(shard=7)]):
        predict(model, users, tmp_path / str(n), config)
        answers.append(read(tmp_path / str(n)))
    for other in answers[1:]:
        assert [(r["user"], r["items"], r["sources"]) for r in other] == [
            (r["user"], r["items"], r["sources"]) for r in answers[0]
        ]
        for a, b in zip(answers[0], other, strict=True):
            np.testing.assert_allclose(a["scores"], b["scores"], rtol=1e-6)


def test_beam_writes_the_same_files_and_goes_on_with_those_that_are_missing(model: Path, tmp_path: Path) -> None:
    users = read_users("all", model)
    beam = engine_of(EngineConfig(name="beam"))
    assert predict(model, users, tmp_path / "there", BulkConfig(shard=7), beam) == Predicted(24, 4, 24)
    predict(model, users, tmp_path / "here", BulkConfig(shard=7))
    assert read(tmp_path / "there") == read(tmp_path / "here")
    next((tmp_path / "there").glob("*.parquet")).unlink()
    assert predict(model, users, tmp_path / "there", BulkConfig(shard=7), beam).answered in (3, 7)
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("there", "here")]
    assert names[0] == names[1]


def test_the_batches_stay_within_the_cells(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 22 rows of items and 64 × up to 15 events, cells for two of the longest histories fit four of none."""
    longest = bulk_inferrer.DIMENSIONS * 15
    monkeypatch.setattr(bulk_inferrer, "CELLS", 2 * longest)
    users = np.append(read_users("all", model), [f"unknown {n}" for n in range(100)]).astype(object)
    sizes = [len(places) for places, _ in bulk_inferrer._asker(model, BulkConfig())(users)]
    assert sum(sizes) == 124
    assert sizes[:12] == [2] * 12
    assert sizes[12:] == [64, 36]


PREDICT = """
import sys, time
from pathlib import Path
from shortlist.components import bulk_inferrer as b
table = b._table
def slow(users, batches, advance):
    found = table(users, batches, advance)
    print("one", flush=True)
    time.sleep(0.2)
    return found
b._table = slow
model, out = map(Path, sys.argv[1:])
b.predict(model, b.read_users("all", model), out, b.BulkConfig(shard=3))
"""


def test_killed_and_started_again_it_goes_on(model: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    with subprocess.Popen([sys.executable, "-c", PREDICT, str(model), str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == b"one\n"
        time.sleep(0.1)
        process.kill()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 2 <= len(done) <= 3
    users = read_users("all", model)
    assert predict(model, users, out, BulkConfig(shard=3)) == Predicted(24, 8, 24 - 3 * len(done))
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done
    predict(model, users, whole, BulkConfig(shard=3))
    assert [(r["user"], r["items"]) for r in read(out)] == [(r["user"], r["items"]) for r in read(whole)]
    assert predict(model, users, out, BulkConfig(shard=3)) == Predicted(24, 8, 0)


def test_refuses_the_answers_to_something_else(model: Path, tmp_path: Path) -> None:
    users = read_users("all", model)
    predict(model, users, tmp_path / "out", BulkConfig(k=2))
    for other, config in ((users, BulkConfig(k=3)), (users[1:], BulkConfig(k=2)), (users, BulkConfig(k=2, shard=9))):
        with pytest.raises(ShortlistError, match=r"^`--out` must hold no answers of another model, to other users, or"):
            predict(model, other, tmp_path / "out", config)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "mine.parquet")
    with pytest.raises(ShortlistError, match=r"^`--out` must be an empty folder, or one that this wrote"):
        predict(model, users, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ShortlistError, match=r"^`--out` must be a folder that can be written: "):
        predict(model, users, tmp_path / "file" / "out")


def test_reads_users_from_text_and_parquet(model: Path, tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("usér 3\nb\n", "utf-8")
    assert read_users(str(tmp_path / "users.txt"), model).tolist() == ["usér 3", "b"]
    pq.write_table(pa.table({"x": [1, 2], "user": [7, 12]}), tmp_path / "users.parquet")
    assert read_users(str(tmp_path / "users.parquet"), model).tolist() == ["7", "12"]
    assert read_users("all", model).tolist() == (model / "assets" / "users.txt").read_text("utf-8").split("\n")[:-1]


@pytest.mark.parametrize(("text", "what"), [("", "none"), ("a\n\nb\n", "an empty one"), ("a\nb\na\n", "'a' twice")])
def test_refuses_users_that_are_none_or_twice(model: Path, tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "users.txt").write_text(text)
    with pytest.raises(ShortlistError) as error:
        read_users(str(tmp_path / "users.txt"), model)
    given = tmp_path / "users.txt"
    assert str(error.value) == f"`--users` must hold ids, each once. Received: {given} with {what}."


def test_refuses_a_file_without_users(model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "users.parquet")
    for name in ("users.parquet", "missing.txt"):
        with pytest.raises(ShortlistError, match=r"^`--users` must be `all`, a text file with one id a line, or a Par"):
            read_users(str(tmp_path / name), model)
