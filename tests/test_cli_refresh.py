"""`shortlist refresh`: a run's bundle for the catalogue of today, published, asked, taken back; and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_run
import tensorflow as tf
from cli_cases import cli, flat, refused, whole
from small_run import ITEMS, USERS

from shortlist.components.infra_validator import InfraValidator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GENRES = np.array(["Drama", "Comedy", "Crime", "War"])
NEW = [f"n{n}" for n in range(8)]  # n0 is a drama, n1 a comedy, and so on
REMOVED = [f"i{n}" for n in (0, 1, 30, 31)]
KEPT = [f"i{n}" for n in range(ITEMS) if f"i{n}" not in REMOVED]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log and a finished run on it, with a source that knows nothing but content."""
    home = tmp_path_factory.mktemp("refresh")
    small_run.write_log(home)
    toml = "".join(
        f"[sources.{name}]\n{settings}\n"
        for name, settings in {
            "wals": "embedding_dim = 2\nepochs = 1",
            "two_tower": "embedding_dim = 8\nepochs = 4\ntitle = true",
            "content": 'model = "content_based"\nform = "profile"',
        }.items()
    )
    (home / "sources.toml").write_text(toml)
    settings = [s for s in small_run.SETTINGS if not s.startswith("sources.")]
    words = [w for s in (f"data.items={home / 'items.csv'}", *settings) for w in ("--set", s)]
    arguments = ["--data", f"parquet:{home / 'log.parquet'}", "--workdir", home / "run", "--keep", "9", *words]
    result = cli("run", "--config", home / "sources.toml", *arguments)
    assert result.exit_code == 0, result.output
    return home


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(home / "run", tmp_path / "run")


def rows_of(ids: list[str]) -> pa.Table:
    """Items as the run's own file has them."""
    kinds = [GENRES[int(i[1:]) % 4] for i in ids]
    return pa.table({"item": ids, "title": [f"Film {i[1:]}" for i in ids], "genres": kinds})


@pytest.fixture
def today(tmp_path: Path) -> Path:
    pq.write_table(rows_of([*NEW[:4], *KEPT, *NEW[4:]]), tmp_path / "today.parquet")
    return tmp_path / "today.parquet"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A new user who watches dramas, and an old one who watches a new war film."""
    rows = [("new", "n0", 1_700_000_000), ("new", "i4", 1_700_000_100), ("u3", "n3", 1_700_000_200)]
    columns = dict(zip(("user", "item", "timestamp"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    return tmp_path / "log.parquet"


def version(run: Path, number: int) -> Any:
    return tf.saved_model.load(str(run / "pushed" / "shortlist" / str(number)))


def ask(bundle: Any, signature: str = "recommend", **given: list[Any]) -> dict[str, np.ndarray]:
    """The answer to requests of which only `given` is said, text decoded."""
    function = bundle.signatures[signature]
    batch = len(next(iter(given.values())))
    inputs = {}
    for name, spec in function.structured_input_signature[1].items():
        absent = tf.fill(
            [batch] + [1] * (spec.shape.rank - 1), tf.constant("" if spec.dtype == tf.string else -1, spec.dtype)
        )
        inputs[name] = tf.constant(given[name], spec.dtype) if name in given else absent
    found = {name: values.numpy() for name, values in function(**inputs).items()}
    return {n: v.astype(str) if v.dtype == object else v for n, v in found.items()}


USER_IDS = [f"u{n}" for n in range(USERS)]


def test_removed_items_are_never_returned_and_new_ones_are(run: Path, today: Path) -> None:
    result = cli("refresh", run, "--items", today)
    assert result.exit_code == 0, result.output
    assert flat(result.stdout).startswith(
        "64 items: 8 new, 0 changed, 4 removed. 0 new interactions of 0 users, 0 of them new."
    )
    assert f"Pushed: {run / 'pushed' / 'shortlist' / '2'}" in result.stdout
    bundle = version(run, 2)
    every = ITEMS + len(NEW)
    answers = [
        ask(bundle, user=[*USER_IDS, "nobody"], k=[every] * (USERS + 1)),
        ask(bundle, "retrieve", user=USER_IDS, k=[every] * USERS),
        ask(bundle, user=["a new one"] * 3, history=[[i] for i in ("i0", "n1", "i5")], k=[every] * 3),
        ask(bundle, "similar_items", item=[*KEPT, *NEW, *REMOVED], k=[every] * (ITEMS + len(NEW))),
        ask(bundle, "fold_in", history=[["i0", "i4"], ["n0", "i8"]], weights=[[1.0, 1.0]] * 2, k=[every] * 2),
    ]
    for answer in answers:
        assert not {*REMOVED} & {*answer["items"].ravel()}
        assert not {*REMOVED} & {*answer.get("reasons", np.array([""])).ravel()}
    seen = np.diff(tf.saved_model.load(str(run / "pushed/shortlist/2")).splits.numpy())[2:]
    assert answers[0]["count"][-1] == len(KEPT) + len(NEW)  # nothing is known of nobody
    assert (answers[0]["count"] >= len(KEPT) + len(NEW) - seen.max()).all()
    assert {*NEW} <= {*answers[0]["items"][-1]}
    ranked = ask(bundle, "rank", user=["u5"], candidates=[["i2", *REMOVED, "n2", "unknown"]])["scores"][0]
    assert not ranked[1:5].any()
    assert ranked[0] > 0 < ranked[5]


def test_new_items_are_found_by_their_genres_and_titles(run: Path, today: Path) -> None:
    assert cli("refresh", run, "--items", today).exit_code == 0
    bundle = version(run, 2)
    for taste in range(4):
        history = [[f"i{n}" for n in range(taste + 8, taste + 25, 4)]]
        found = ask(bundle, "retrieve", user=["a new one"], history=history, k=[ITEMS])
        place = {item: n for n, item in enumerate(found["items"][0])}
        source = dict(zip(found["items"][0], found["sources"][0], strict=True))
        own, others = ([place[n] for n in NEW if (int(n[1:]) % 4 == taste) == mine] for mine in (True, False))
        assert max(own) < min(others)
        assert all("content" in source[n] and "two_tower" in source[n] for n in NEW if int(n[1:]) % 4 == taste)
    alike = ask(bundle, "similar_items", item=NEW, k=[5] * len(NEW))["items"]
    for item, row in zip(NEW, alike, strict=True):
        assert all(int(other[1:]) % 4 == int(item[1:]) % 4 for other in row)
    watched = ask(bundle, user=["a new one"], history=[["n1"]], k=[5])["items"][0]
    assert np.mean([int(item[1:]) % 4 == 1 for item in watched]) >= 0.8


def test_a_catalogue_that_is_the_same_changes_no_answer(run: Path, tmp_path: Path) -> None:
    pq.write_table(rows_of([f"i{n}" for n in range(ITEMS)][::-1]), tmp_path / "same.parquet")
    assert cli("refresh", run, "--items", tmp_path / "same.parquet").exit_code == 0
    before, after = version(run, 1), version(run, 2)
    for asked in ({"user": USER_IDS, "k": [20] * USERS}, {"user": ["x"], "history": [["i3", "i7"]], "k": [60]}):
        was, now = ask(before, **asked), ask(after, **asked)
        for name, values in was.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(now[name], values, rtol=1e-5)
            else:
                np.testing.assert_array_equal(now[name], values)


def test_others_keep_their_answers_but_for_what_is_displaced(run: Path, today: Path, log: Path) -> None:
    """Each source says of the items that it knew what it said before; only the places move."""
    assert cli("refresh", run, "--items", today, "--interactions", log).exit_code == 0
    others = [u for u in USER_IDS if u != "u3"]
    for source in ("wals", "two_tower", "content"):
        quota = {f"quota_{name}": 0 for name in ("wals", "two_tower", "content") if name != source}
        orders = []
        for number in (1, 2):
            examples = [example(user=user, k=ITEMS, include_only=KEPT, **quota) for user in others]
            found = version(run, number).signatures["serving_default"](examples=tf.constant(examples))
            orders.append(np.sort(found["items"].numpy().astype(str), axis=1))
        np.testing.assert_array_equal(*orders)
    lists = []
    for number in (1, 2):
        loaded = version(run, number)
        rows = loaded.shortlist.sources
        query = {
            "user": tf.constant([2, 3, 4]), "history": tf.constant([[5, 9], [7, 0], [3, 2]]),
            "history_time": tf.constant([[1, 2], [1, 0], [1, 2]], tf.int64), "time": tf.constant([9, 9, 9], tf.int64),
        }  # fmt: skip
        lists.append([rows[name].scores(query).numpy() for name in rows])
    for was, now in zip(*lists, strict=True):
        np.testing.assert_allclose(now[:, : was.shape[1]], was, rtol=1e-5, atol=1e-6)


def example(**features: Any) -> bytes:
    def feature(value: Any) -> tf.train.Feature:
        values = value if isinstance(value, list) else [value]
        if isinstance(values[0], str):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode() for v in values]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    return tf.train.Example(
        features=tf.train.Features(feature={n: feature(v) for n, v in features.items()})
    ).SerializeToString()


def test_users_are_as_they_are_now_and_add_up_over_refreshes(run: Path, today: Path, log: Path, tmp_path: Path) -> None:
    first = cli("refresh", run, "--items", today, "--interactions", log)
    assert "3 new interactions of 2 users, 1 of them new." in flat(first.stdout)
    bundle = version(run, 2)
    mine = ask(bundle, user=["new"], k=[20])
    assert not {"n0", "i4"} & {*mine["items"][0]}
    assert np.mean([int(item[1:]) % 4 == 0 for item in mine["items"][0][:5]]) >= 0.8
    assert "n3" not in ask(bundle, user=["u3"], k=[70])["items"]
    assert ask(bundle, "similar_users", user=["new"], k=[3])["count"][0] == 3
    assert ask(version(run, 1), "similar_users", user=["new"], k=[3])["count"][0] == 0
    shown = cli("recommend", run, "--user", "new")
    assert shown.exit_code == 0
    assert "Film 4" in shown.stdout

    pq.write_table(
        pa.table({"user": ["later"], "item": ["i9"], "timestamp": [1_700_000_300]}), tmp_path / "tuesday.parquet"
    )
    second = cli("refresh", run, "--items", today, "--interactions", tmp_path / "tuesday.parquet")
    assert "4 new interactions of 3 users, 2 of them new." in flat(second.stdout)
    assert not {"n0", "i4"} & {*ask(version(run, 3), user=["new"], k=[20])["items"][0]}
    same = cli("refresh", run, "--items", today, "--interactions", tmp_path / "tuesday.parquet")
    assert not any(small_run.steps(same.stderr).values())
    assert f"Pushed: {run / 'pushed' / 'shortlist' / '3'}" in same.stdout
    assert not (run / "pushed" / "shortlist" / "4").exists()
    assert cli("predict", run, "--users", "all", "--out", tmp_path / "out").exit_code == 0
    assert "later" in pq.read_table(next((tmp_path / "out").glob("*.parquet")))["user"].to_pylist()


def test_a_rollback_takes_a_refresh_away_with_its_interactions(run: Path, today: Path, log: Path) -> None:
    assert cli("refresh", run, "--items", today, "--interactions", log).exit_code == 0
    back = cli("rollback", run)
    assert back.stdout == f"Rolled back: 2. Served now: {run / 'pushed' / 'shortlist' / '1'}\n"
    assert "n0" not in cli("recommend", run, "--user", "u3", "-k", "70").stdout
    again = cli("refresh", run, "--items", today, "--interactions", log)
    assert again.exit_code == 0
    assert "Version 2 was rolled back: it is not pushed again." in again.stderr
    other = cli("refresh", run, "--items", today)
    assert "0 new interactions" in flat(other.stdout)
    assert (run / "pushed" / "shortlist" / "3").exists()
    forced = cli("refresh", run, "--items", today, "--interactions", log, "--force")
    assert f"Pushed: {run / 'pushed' / 'shortlist' / '4'}" in forced.stdout


def test_a_run_after_a_refresh_is_what_is_served(home: Path, run: Path, today: Path) -> None:
    assert cli("refresh", run, "--items", today).exit_code == 0
    assert "Film 0 " not in cli("recommend", run, "--user", "u1", "-k", "70").stdout
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert settings["push"]["keep"] == 9
    entries = json.loads((run / "refreshed.json").read_text())
    assert [e["version"] for e in entries] == [2]
    assert set(entries[0]["steps"]) >= {"RefreshGen", "Transform.refresh", "Exporter.refresh", "Pusher.refresh"}


def test_a_killed_refresh_goes_on_and_leaves_nothing_half(
    run: Path, today: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(InfraValidator, "run", killed)
        result = cli("refresh", run, "--items", today)
    assert result.exit_code == 130
    assert "The same command goes on from the last finished step." in result.stderr
    assert sorted(p.name for p in (run / "pushed" / "shortlist").iterdir() if p.is_dir()) == ["1"]
    assert not (run / "refreshed.json").exists()
    assert "Exporter.refresh" in whole(run)
    again = cli("refresh", run, "--items", today)
    assert [name for name, ran in small_run.steps(again.stderr).items() if ran] == [
        "InfraValidator.refresh",
        "Pusher.refresh",
    ]
    assert version(run, 2)


def test_a_bundle_that_does_not_work_is_not_pushed(run: Path, today: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shortlist.components import infra_validator

    monkeypatch.setattr(infra_validator.InfraValidator, "_replay", lambda *_: (["it is broken"], 0))
    result = cli("refresh", run, "--items", today)
    assert result.exit_code == 3
    assert "Not pushed. The bundle does not work: it is broken" in flat(result.stdout)
    assert not (run / "pushed" / "shortlist" / "2").exists()
    assert not (run / "refreshed.json").exists()


def unblessed(run: Path) -> None:
    for file in run.glob("artifacts/Evaluator/*/blessing.json"):
        file.write_text(json.dumps({"blessed": False, "reasons": ["It is not better than popularity."]}))


def test_a_run_that_was_not_blessed_is_refused_and_marked_when_forced(run: Path, today: Path) -> None:
    unblessed(run)
    line = refused("refresh", run, "--items", today)
    assert line == (
        "`run` must be blessed, or nothing of it is published: It is not better than popularity. Give --force to "
        f"publish it all the same; the version is marked then. Received: {run}."
    )
    forced = cli("refresh", run, "--items", today, "--force")
    assert forced.exit_code == 0
    assert "Forced. The evaluation does not bless it: It is not better than popularity." in flat(forced.stdout)
    (pushed,) = run.glob("artifacts/Pusher.refresh/*/pushed.json")
    assert json.loads(pushed.read_text())["forced"] is True


def test_versions_that_are_there_are_left_alone(run: Path, today: Path) -> None:
    (run / "pushed" / "shortlist" / "7").mkdir()
    assert cli("refresh", run, "--items", today, "--keep", "9").exit_code == 0
    assert version(run, 8)
    assert list((run / "pushed" / "shortlist" / "7").iterdir()) == []


@pytest.mark.parametrize("step", ["shutil.copy", "shutil.copytree"])
def test_a_full_disk_leaves_the_last_version(
    run: Path, today: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(step, full)
        line = refused("refresh", run, "--items", today)
    assert "cannot be written: No space left on device" in line or "must be a folder that can be written" in line
    assert sorted(p.name for p in (run / "pushed" / "shortlist").iterdir() if p.is_dir()) == ["1"]
    assert cli("refresh", run, "--items", today).exit_code == 0


def test_refuses_what_cannot_be_refreshed(home: Path, run: Path, today: Path, tmp_path: Path) -> None:
    pq.write_table(rows_of(NEW), tmp_path / "new.parquet")
    line = refused("refresh", run, "--items", tmp_path / "new.parquet")
    assert line.startswith(
        "`--items` must be the whole catalogue, not only what is new: it lacks 60 of the run's 60 items"
    )
    assert "takes data.columns.* and push.* alone" in refused("refresh", run, "--items", today, "--set", "seed=3")
    assert "`run` must be the folder of a finished run" in refused("refresh", tmp_path, "--items", today)
    assert "`--items` must be a file that can be read" in refused("refresh", run, "--items", tmp_path / "none.parquet")
    (run / "refreshed.json").write_text("{")
    assert "refreshed.json` must be a list of refreshes" in refused("refresh", run, "--items", today)
    (run / "refreshed.json").unlink()
    shutil.rmtree(run / "artifacts" / "Trainer.wals")
    assert "was made from an artifact that is gone" in refused("refresh", run, "--items", today)
