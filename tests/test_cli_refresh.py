"""`shortlist refresh`: a run's bundle for the catalogue of today, published, asked, taken back; and what is refused."""

import base64
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
from cli_cases import cli, flat, refused
from small_run import ITEMS, USERS

from shortlist.components import infra_validator
from shortlist.components._native import CannotCompile
from shortlist.components._records import encode_example
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


def rows_of(ids: list[str]) -> pa.Table:
    """Items as the run's own file has them."""
    kinds = [GENRES[int(i[1:]) % 4] for i in ids]
    return pa.table({"item": ids, "title": [f"Film {i[1:]}" for i in ids], "genres": kinds})


@pytest.fixture(scope="module")
def files(home: Path) -> tuple[str | Path, ...]:
    """Today's catalogue, and what happened since: a new user who watches dramas, and an old one who watches a new
    film."""
    pq.write_table(rows_of([*NEW[:4], *KEPT, *NEW[4:]]), home / "today.parquet")
    rows = [("new", "n0", 1_700_000_000), ("new", "i4", 1_700_000_100), ("u3", "n3", 1_700_000_200)]
    columns = dict(zip(("user", "item", "timestamp"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), home / "log.parquet")
    return ("--items", home / "today.parquet", "--interactions", home / "log.parquet")


@pytest.fixture(scope="module")
def fresh(home: Path, files: tuple[str | Path, ...]) -> Path:
    """The run, refreshed once; nothing changes it."""
    run = shutil.copytree(home / "run", home / "fresh")
    result = cli("refresh", run, *files)
    assert result.exit_code == 0, result.output
    (home / "stdout").write_text(result.stdout)
    return run


@pytest.fixture
def run(fresh: Path, tmp_path: Path) -> Path:
    """A copy of the refreshed run."""
    return shutil.copytree(fresh, tmp_path / "run")


@pytest.fixture
def in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the gate's second replay, by a C program: other tests have it."""

    def none() -> Path:
        raise CannotCompile("not here")

    monkeypatch.setattr(infra_validator, "replay_program", none)


@pytest.fixture
def unpushed(run: Path) -> Path:
    """The same, as if the refresh had been stopped before anything was validated."""
    for step in ("InfraValidator.refresh", "Pusher.refresh"):
        shutil.rmtree(run / "artifacts" / step)
    shutil.rmtree(run / "pushed" / "shortlist" / "2")
    (run / "refreshed.json").unlink()
    return run


@pytest.fixture
def validated(run: Path) -> Path:
    """The same, as if it had been stopped before it was pushed."""
    shutil.rmtree(run / "artifacts" / "Pusher.refresh")
    shutil.rmtree(run / "pushed" / "shortlist" / "2")
    (run / "refreshed.json").unlink()
    return run


def numbers(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "pushed" / "shortlist").iterdir() if p.is_dir())


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


def test_removed_items_are_never_returned_and_new_ones_are(home: Path, fresh: Path) -> None:
    stdout = (home / "stdout").read_text()
    said = "64 items: 8 new, 0 changed, 4 removed. 3 new interactions of 2 users, 1 of them new. Pushed:"
    assert flat(stdout).startswith(said)
    assert str(fresh / "pushed" / "shortlist" / "2") in stdout
    bundle = version(fresh, 2)
    every = ITEMS + len(NEW)
    answers = [
        ask(bundle, user=[*USER_IDS, "nobody"], k=[every] * (USERS + 1)),
        ask(bundle, "retrieve", user=USER_IDS, k=[every] * USERS),
        ask(bundle, user=["a new one"] * 3, history=[[i] for i in ("i0", "n1", "i5")], k=[every] * 3),
        ask(bundle, "similar_items", item=[*KEPT, *NEW, *REMOVED], k=[every] * every),
        ask(bundle, "fold_in", history=[["i0", "i4"], ["n0", "i8"]], weights=[[1.0, 1.0]] * 2, k=[every] * 2),
    ]
    for answer in answers:
        assert not {*REMOVED} & {*answer["items"].ravel()}
        assert not {*REMOVED} & {*answer.get("reasons", np.array([""])).ravel()}
        assert answer["count"].min() > 0
    everything = len(KEPT) + len(NEW)
    assert answers[0]["count"][-1] == everything  # nothing is known of nobody
    assert {*answers[0]["items"][-1]} >= {*NEW}
    assert (answers[0]["count"] >= everything - np.diff(bundle.splits.numpy()).max()).all()
    ranked = ask(bundle, "rank", user=["u5"], candidates=[["i2", *REMOVED, "n2", "unknown"]])["scores"][0]
    assert not ranked[1:5].any()
    assert not ranked[6]
    assert min(ranked[0], ranked[5]) > 0


def test_new_items_are_found_by_their_genres_and_titles(fresh: Path) -> None:
    bundle = version(fresh, 2)
    for taste in range(4):
        history = [[f"i{n}" for n in range(taste + 8, taste + 25, 4)]]
        found = ask(bundle, "retrieve", user=["a new one"], history=history, k=[ITEMS])
        place = {item: n for n, item in enumerate(found["items"][0])}
        source = dict(zip(found["items"][0], found["sources"][0], strict=True))
        own, others = ([place[n] for n in NEW if (int(n[1:]) % 4 == taste) == mine] for mine in (True, False))
        assert max(own) < min(others)
        assert all("content" in source[n] and "two_tower" in source[n] for n in NEW if int(n[1:]) % 4 == taste)
    alike = ask(bundle, "similar_items", item=[n for n in NEW if n not in ("n0", "n3")], k=[5] * 6)["items"]
    for item, row in zip([n for n in NEW if n not in ("n0", "n3")], alike, strict=True):
        assert all(int(other[1:]) % 4 == int(item[1:]) % 4 for other in row)
    watched = ask(bundle, user=["a new one"], history=[["n1"]], k=[5])["items"][0]
    assert np.mean([int(item[1:]) % 4 == 1 for item in watched]) >= 0.8


def test_others_keep_what_each_source_says_of_the_items_that_it_knew(fresh: Path) -> None:
    rng = np.random.default_rng(0)
    query = {
        "user": tf.range(2, 12),
        "history": tf.constant(rng.integers(2, ITEMS + 2, (10, 8)), tf.int32),
        "history_time": tf.constant(1_600_000_000 + np.zeros((10, 8)), tf.int64),
        "time": tf.fill([10], tf.constant(1_601_000_000, tf.int64)),
    }
    found = []
    for number in (1, 2):
        sources = version(fresh, number).shortlist.sources
        found.append({name: sources[name].scores(query).numpy() for name in ("wals", "two_tower", "content")})
    for name, was in found[0].items():
        np.testing.assert_allclose(found[1][name][:, : ITEMS + 2], was, rtol=1e-5, atol=1e-6, err_msg=name)


def test_others_keep_their_order_where_nothing_that_has_changed_is_asked_for(fresh: Path) -> None:
    """Among the items that stayed, of one source alone, the order of everybody else is what it was."""
    others, bundles = [u for u in USER_IDS if u != "u3"][::7], [version(fresh, number) for number in (1, 2)]
    for source in ("wals", "two_tower", "content"):
        quota = {f"quota_{name}": 0 for name in ("wals", "two_tower", "content") if name != source}
        lists = []
        for bundle in bundles:
            examples = [encoded(user=user, k=ITEMS, include_only=KEPT, **quota) for user in others]
            answer = bundle.signatures["serving_default"](examples=tf.constant(examples))
            lists.append(answer["items"].numpy())
        assert [{*row} for row in lists[0]] == [{*row} for row in lists[1]]


def encoded(**features: Any) -> bytes:
    return base64.b64decode(encode_example(features))


@pytest.mark.usefixtures("in_python")
def test_a_catalogue_that_is_the_same_changes_no_answer(home: Path, tmp_path: Path) -> None:
    run = shutil.copytree(home / "run", tmp_path / "run")
    pq.write_table(rows_of([f"i{n}" for n in range(ITEMS)][::-1]), tmp_path / "same.parquet")
    result = cli("refresh", run, "--items", tmp_path / "same.parquet")
    assert flat(result.stdout).startswith("60 items: 0 new, 0 changed, 0 removed. 0 new interactions of 0 users")
    before, after = version(run, 1), version(run, 2)
    for asked in ({"user": USER_IDS, "k": [20] * USERS}, {"user": ["x"], "history": [["i3", "i7"]], "k": [60]}):
        was, now = ask(before, **asked), ask(after, **asked)
        for name, values in was.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(now[name], values, rtol=1e-5)
            else:
                np.testing.assert_array_equal(now[name], values)


@pytest.mark.usefixtures("in_python")
def test_users_are_as_they_are_now_and_add_up_over_refreshes(
    run: Path, files: tuple[str | Path, ...], tmp_path: Path
) -> None:
    bundle = version(run, 2)
    mine = ask(bundle, user=["new"], k=[20])["items"][0]
    assert not {"n0", "i4"} & {*mine}
    assert np.mean([int(item[1:]) % 4 == 0 for item in mine[:5]]) >= 0.8
    assert "n3" not in ask(bundle, user=["u3"], k=[70])["items"]
    assert ask(bundle, "similar_users", user=["new"], k=[3])["count"][0] == 3
    assert ask(version(run, 1), "similar_users", user=["new"], k=[3])["count"][0] == 0
    shown = cli("recommend", run, "--user", "new", "-k", "3")
    assert shown.exit_code == 0
    assert shown.stdout.index("Film 4") < shown.stdout.index("Film 0")  # the last watched first; n0 is a Film 0

    late = {"user": ["later"], "item": ["i9"], "timestamp": [1_700_000_300]}
    pq.write_table(pa.table(late), tmp_path / "tuesday.parquet")
    tuesday = (*files[:3], tmp_path / "tuesday.parquet")
    second = cli("refresh", run, *tuesday)
    assert "4 new interactions of 3 users, 2 of them new." in flat(second.stdout)
    assert not {"n0", "i4"} & {*ask(version(run, 3), user=["new"], k=[20])["items"][0]}
    same = cli("refresh", run, *tuesday)
    assert not any(small_run.steps(same.stderr).values())
    assert f"Pushed: {run / 'pushed' / 'shortlist' / '3'}" in same.stdout
    assert numbers(run) == ["1", "2", "3"]
    assert cli("predict", run, "--users", "all", "--out", tmp_path / "out").exit_code == 0
    assert "later" in pq.read_table(next((tmp_path / "out").glob("*.parquet")))["user"].to_pylist()


def test_a_rollback_takes_a_refresh_away(run: Path, validated: Path, files: tuple[str | Path, ...]) -> None:
    assert cli("refresh", run, *files).exit_code == 0
    assert "Film 4" in cli("recommend", run, "--user", "new").stdout
    back = cli("rollback", run)
    assert back.stdout == f"Rolled back: 2. Served now: {run / 'pushed' / 'shortlist' / '1'}\n"
    assert "popularity" in cli("recommend", run, "--user", "new").stdout
    again = cli("refresh", run, *files)
    assert again.exit_code == 0
    assert "Version 2 was rolled back: it is not pushed again." in again.stderr
    assert "Pushed:" not in again.stdout
    forced = cli("refresh", run, *files, "--force")
    assert f"Pushed: {run / 'pushed' / 'shortlist' / '3'}" in forced.stdout
    assert [n for n, ran in small_run.steps(forced.stderr).items() if ran] == ["Pusher.refresh"]
    assert numbers(run) == ["1", "3", "rolled-back-2"]
    entries = json.loads((run / "refreshed.json").read_text())
    assert [e["version"] for e in entries] == [2, 3]
    assert set(entries[0]["steps"]) >= {"RefreshGen", "Transform.refresh", "Exporter.refresh", "Pusher.refresh"}


@pytest.mark.usefixtures("in_python")
def test_a_killed_refresh_goes_on_and_leaves_nothing_half(
    unpushed: Path, files: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(InfraValidator, "_replay", killed)
        result = cli("refresh", unpushed, *files)
    assert result.exit_code == 130
    assert "The same command goes on from the last finished step." in result.stderr
    assert numbers(unpushed) == ["1"]
    assert not (unpushed / "refreshed.json").exists()
    again = cli("refresh", unpushed, *files)
    ran = [name for name, did in small_run.steps(again.stderr).items() if did]
    assert ran == ["InfraValidator.refresh", "Pusher.refresh"]
    assert numbers(unpushed) == ["1", "2"]


def test_a_bundle_that_does_not_work_is_not_pushed(
    unpushed: Path, files: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InfraValidator, "_replay", lambda *_: (["it is broken"], 0))
    result = cli("refresh", unpushed, *files, "--force")
    assert result.exit_code == 3
    assert "Not pushed. The bundle does not work: it is broken" in flat(result.stdout)
    assert numbers(unpushed) == ["1"]
    assert not (unpushed / "refreshed.json").exists()


def test_a_run_that_was_not_blessed_is_refused_and_marked_when_forced(
    validated: Path, files: tuple[str | Path, ...]
) -> None:
    for file in validated.glob("artifacts/Evaluator/*/blessing.json"):
        file.write_text(json.dumps({"blessed": False, "reasons": ["It is not better than popularity."]}))
    assert refused("refresh", validated, *files) == (
        "`run` must be blessed, or nothing of it is published: It is not better than popularity. Give --force to "
        f"publish it all the same; the version is marked then. Received: {validated}."
    )
    assert numbers(validated) == ["1"]
    forced = cli("refresh", validated, *files, "--force")
    assert forced.exit_code == 0
    assert "Forced. The evaluation does not bless it: It is not better than popularity." in flat(forced.stdout)
    (pushed,) = validated.glob("artifacts/Pusher.refresh/*/pushed.json")
    assert json.loads(pushed.read_text())["forced"] is True


def test_versions_that_are_there_are_left_alone(validated: Path, files: tuple[str | Path, ...]) -> None:
    (validated / "pushed" / "shortlist" / "7").mkdir()
    assert cli("refresh", validated, *files, "--keep", "9").exit_code == 0
    assert numbers(validated) == ["1", "7", "8"]
    assert list((validated / "pushed" / "shortlist" / "7").iterdir()) == []


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("shutil.copy", "cannot be written: No space left on device. Free some space"),
        ("shutil.copytree", "`push.destination` must be a folder that can be written: No space left on device."),
    ],
)
def test_a_full_disk_leaves_the_last_version(
    validated: Path, files: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch, step: str, message: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    if step == "shutil.copy":
        shutil.rmtree(validated / "artifacts" / "RefreshGen")
    with monkeypatch.context() as patch:
        patch.setattr(step, full)
        assert message in refused("refresh", validated, *files)
    assert numbers(validated) == ["1"]
    assert cli("refresh", validated, *files).exit_code == 0
    assert numbers(validated) == ["1", "2"]


def test_refuses_what_cannot_be_refreshed(run: Path, files: tuple[str | Path, ...], tmp_path: Path) -> None:
    pq.write_table(rows_of(NEW), tmp_path / "new.parquet")
    line = refused("refresh", run, "--items", tmp_path / "new.parquet")
    rule = "`--items` must be the whole catalogue, not only what is new: it lacks 60 of the run's 60 items"
    assert line.startswith(rule)
    assert "takes data.columns.* and push.* alone" in refused("refresh", run, *files, "--set", "seed=3")
    assert "`run` must be the folder of a finished run" in refused("refresh", tmp_path, *files)
    assert "`--items` must be a file that can be read" in refused("refresh", run, "--items", tmp_path / "none.parquet")
    (run / "refreshed.json").write_text("{")
    assert "refreshed.json` must be a list of refreshes" in refused("refresh", run, *files)
    (run / "refreshed.json").unlink()
    shutil.rmtree(run / "artifacts" / "Trainer.wals")
    assert "was made from an artifact that is gone" in refused("refresh", run, *files)
