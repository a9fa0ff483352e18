"""Sources that learn nothing: when items came, and an order that was made elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tables
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._config import parse
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Encoded, Model
from shortlist.components.trainer import Trainer
from shortlist.trainers import fresh, table
from shortlist.trainers.two_stage import load_config, retrieval_only

DAY, START = 86_400, 1_600_000_000


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """Three users watch four items, each a day after the other; items 2 and 3 say when they were added."""
    rows = [tables.row(f"u{user}", f"i{item}", START + DAY * item + user) for user in range(3) for item in range(4)]
    content = [{"item": f"i{item}", "added": START + DAY * (item - 3) if item > 1 else None} for item in range(4)]
    folder = tmp_path_factory.mktemp("s")
    splits = tables.write_splits(folder, {"train": rows}, content, item_columns={"added": pa.int64()})
    return tables.encode(splits)


def by_item(scores: np.ndarray, encoded: Encoded) -> dict[str, float]:
    ids = EncodedData(encoded).items["id"]
    return {str(ids[row]): round(float(scores[row]), 6) for row in range(2, len(ids)) if np.isfinite(scores[row])}


def ask(folder: Path, encoded: Encoded, user: str = "", time: int = START) -> dict[str, float]:
    served = tf.saved_model.load(str(folder / "serving"))
    users = EncodedData(encoded).users
    row = dict(zip(users["id"], users["user"], strict=True)).get(user, 1)
    query = {"user": [row], "history": [[0]]}
    query = {name: tf.constant(value, tf.int32) for name, value in query.items()}
    query |= {"history_time": tf.constant([[0]], tf.int64), "time": tf.constant([time], tf.int64)}
    return by_item(served.score_items(query).numpy()[0], encoded)


# --- fresh ------------------------------------------------------------------------------------------------------------


def test_items_come_when_they_are_added_or_just_after_their_first_event(encoded: Encoded, tmp_path: Path) -> None:
    fresh.train(fresh.Config(half_life_days=1.0, popularity=0.0), {"encoded": encoded}, tmp_path)
    assert ask(tmp_path, encoded, time=START - DAY) == {"i2": 1.0}
    # Nothing of item 0 is known at the time of its first event, and of item 1 nothing yet.
    assert ask(tmp_path, encoded, time=START) == {"i2": 0.5, "i3": 1.0}
    assert ask(tmp_path, encoded, time=START + 1) == pytest.approx({"i0": 1.0, "i2": 0.5, "i3": 1.0}, abs=1e-4)


# --- tables -----------------------------------------------------------------------------------------------------------


def made(file: Path, text: str, encoded: Encoded, workdir: Path, **settings: Any) -> Path:
    file.write_text(text, "utf-8")
    workdir.mkdir(exist_ok=True)
    table.train(parse(table.Config, {"path": file, **settings}), {"encoded": encoded}, workdir)
    return workdir


TEXT = "item,score,user\ni0,1,\ni1,2.5,\ni3,7,u1\ngone,9,\nlost,1,u2\ni2,3,nobody\ngone,4,u1\n"


def test_whose_rows_count_and_what_is_left_out_is_said(
    encoded: Encoded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made(tmp_path / "news.csv", TEXT, encoded, tmp_path / "m")
    everybody = {"i0": 1.0, "i1": 2.5}
    assert ask(folder, encoded, "u1") == {"i3": 7.0}
    assert ask(folder, encoded, "u2") == ask(folder, encoded, "a stranger") == everybody
    notes = json.loads((folder / "model.json").read_text())["notes"]
    assert notes == [
        "news.csv: 3 rows left out, of 2 items that the training part does not have, such as gone, lost.",
        "news.csv: 1 row left out, of 1 user that the training part does not have, such as nobody.",
    ]
    assert notes[0][:40] in capsys.readouterr().err
    assert ask(made(tmp_path / "news.csv", TEXT, encoded, tmp_path / "m", most=1), encoded) == {"i1": 2.5}


def test_a_parquet_file_without_users(encoded: Encoded, tmp_path: Path) -> None:
    pq.write_table(pa.table({"item": ["i2", "i0"], "score": [1, 2], "why": ["a", "b"]}), tmp_path / "t.parquet")
    table.train(table.Config(path=tmp_path / "t.parquet"), {"encoded": encoded}, tmp_path)
    assert ask(tmp_path, encoded, "u0") == {"i2": 1.0, "i0": 2.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,points\ni0,1\n", "`score` must be a column of t.csv. Received the columns: item, points. Rename one."),
        ("item,score\ni0,1\ni1,\n", "`score` of t.csv must be a number in every row. Received: none in data row 2."),
        ("item,score\n", "`score` of t.csv must be a number in every row. Received: a table without rows."),
        ("item,score\ni0,x\n", "`score` of t.csv must be a finite number or empty. Received: 'x' in data row 1."),
        ("item,score\n,1\n", "`item` of t.csv must be there in every row. Received: '' in data row 1."),
        ("item,score\nx,1\n", "`path` must have items of the catalogue. Received: "),
        ("", "`path` must not be empty. Received: "),
    ],
)
def test_files_that_do_not_fit(encoded: Encoded, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ShortlistError) as error:
        made(tmp_path / "t.csv", text, encoded, tmp_path / "m")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_no_file(encoded: Encoded, tmp_path: Path) -> None:
    with pytest.raises(ShortlistError) as error:
        table.train(table.Config(), {"encoded": encoded}, tmp_path)
    assert str(error.value) == '`path` must name a file, as model = "table:news.csv" does for a source. Received: none.'
    with pytest.raises(
        ShortlistError, match=r"^`path` must be a file that can be read\. Received: .*/none\.csv: No such"
    ):
        table.train(table.Config(path=tmp_path / "none.csv"), {"encoded": encoded}, tmp_path)


def test_a_source_names_its_file_and_what_is_in_it_belongs_to_the_step(tmp_path: Path) -> None:
    file = tmp_path / "news.csv"
    file.write_text("item,score\ni0,1\n")
    config = load_config(overrides={"sources": {"news": {"model": f"table:{file}", "most": 5}}})
    step = retrieval_only(config).steps["Trainer.news"].component
    assert isinstance(step, Trainer)
    assert step.config == table.Config(path=file, most=5)
    before = step.external()
    assert before == {"path": step.external()["path"]}
    file.write_text("item,score\ni0,2\n")
    assert step.external() != before
    assert retrieval_only(load_config()).steps["Trainer.wals"].component.external() is None


def test_a_changed_file_makes_the_model_anew(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "user,item,timestamp\n" + "".join(f"u{u},i{i},{START + DAY * i + u}\n" for u in range(6) for i in range(10))
    )
    file = tmp_path / "news.csv"
    file.write_text("item,score\ni3,1\n")
    sources = {"news": {"model": f"table:{file}"}}
    given = {"data.source": f"csv:{tmp_path / 'log.csv'}", "sources": sources, "workdir": tmp_path / "run"}
    pipeline = retrieval_only(load_config(overrides={**given, "baselines": {}}))
    first = pipeline.run(until=["Trainer.news"])["Trainer.news"]
    pipeline.run(until=["Trainer.news"])
    assert pipeline.ran == []
    file.write_text("item,score\ni4,1\n")
    second = pipeline.run(until=["Trainer.news"])
    assert pipeline.ran == ["Trainer.news"]
    assert isinstance(first, Model)
    assert [list(ask(m.uri, second["Transform"])) for m in (first, second["Trainer.news"])] == [["i3"], ["i4"]]
