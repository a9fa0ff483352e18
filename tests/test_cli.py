"""The command line: what it teaches, what it lists, and how it refuses. tests/test_cli_runs.py has what it runs."""

import fcntl
import re
import subprocess

import pytest
import small_run
from cli_cases import cli, flat, refused, whole

from shortlist import ShortlistError

COMMANDS = ("run", "train", "tune", "evaluate", "compare", "recommend", "predict", "refresh", "serve", "rollback")
COMMANDS += ("models", "data")
HEAD = "user,item,timestamp,rating\n"
ROWS = "".join(f"u{user},i{(user + step) % 20},{1000 * step},3\n" for user in range(8) for step in range(10))
TINY = ("sources.wals.embedding_dim=2", "sources.wals.epochs=1", "sources.two_tower.epochs=1")
TINY_SET = [word for setting in (*TINY, "evaluation.cutoffs=[2]") for word in ("--set", setting)]


@pytest.fixture
def log(tmp_path) -> str:
    (tmp_path / "ok.csv").write_text(HEAD + ROWS)
    return f"csv:{tmp_path / 'ok.csv'}"


# --- help and lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_an_example(command):
    result = cli(command, "--help")
    assert result.exit_code == 0
    assert f"Example: shortlist {command}" in flat(result.stdout)


def test_help_names_every_command():
    result = cli("--help")
    assert result.exit_code == 0
    assert all(re.search(rf"\b{command}\b", result.stdout) for command in COMMANDS)


MODELS = [
    *("biased_mf", "camf", "content_based", "ease", "fresh", "hybrid", "item_knn", "knowledge_based", "neighbours"),
    *("popularity", "post_filter", "similar_users", "table", "two_tower", "wals", "weighted_logistic"),
]


def test_models_are_listed_a_line_each():
    result = cli("models")
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert names == MODELS


def test_sources_of_data_are_listed_a_line_each():
    result = cli("data")
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert names[0] == "demo"
    assert {"tfds:movielens/latest-small", "tfds:movielens/25m", "csv:PATH", "carskit:PATH"} <= set(names)


# --- what is refused before anything runs ----------------------------------------------------------------------------

SETTINGS = [
    (["--data", "nope"], "`source` must be one of: demo, tfds:movielens/latest-small"),
    (["--data", "csv:"], "carskit:PATH, simulated (or simulated:impressions=50000,seed=1). Received: 'csv:'."),
    (["--set", "sources.wals.embeding_dim=3"], "Did you mean `embedding_dim`?"),
    (["--set", "rankr.epochs=3"], "`rankr` is not a setting of the configuration. Did you mean `ranker`?"),
    (["--set", "shortlist.sise=3"], "`shortlist.sise` is not a setting of the configuration. Did you mean `size`?"),
    (["--set", "ranker.epochs"], "`--set` takes NAME=VALUE"),
    (["--set", "=3"], "`--set` takes NAME=VALUE"),
    (["--set", "seed.x=3"], "`seed.x` is not a setting: `seed` is a value."),
    (["--set", "sources=3"], "`sources` must be a table of settings. Received: 3."),
    (["--set", "sources.wals=3"], "`sources.wals` must be a table of settings. Received: 3."),
    (["--set", "evaluation=3"], "`evaluation` must be a table of settings. Received: 3."),
    (["--set", "sources={}"], "`sources` of the configuration: Dictionary should have at least 1 item"),
    (["--set", "sources.mine.model=nope"], "`model` must be one of biased_mf, camf, content_based, ease,"),
    (["--set", "ranker.model=wals"], "`ranker.model` must be weighted_logistic. Received: 'wals'."),
    (["--set", "sources.mine.model=weighted_logistic"], "`sources.mine.model` must be a retriever."),
    (["--set", "sources.popularity={}"], "`baselines.popularity` needs a name of its own"),
    (["--set", "sources.union.model=wals"], "`sources.union` needs a name of its own"),
    (["--set", "baselines.two_stage.model=wals"], "`baselines.two_stage` needs a name of its own"),
    (["--set", "sources.weighted_logistic.model=wals"], "`sources.weighted_logistic` needs a name of its own"),
    (["--set", "sources.../x.model=wals"], "`sources` must be named with letters, digits, _ and -. Received: ''."),
    (["--set", "sources.a/b.model=wals"], "`sources` must be named with letters, digits, _ and -. Received: 'a/b'."),
    (
        ["--set", "shortlist.size=0"],
        "`shortlist.size` of the configuration: Input should be greater than or equal to 1",
    ),
    (["--set", "shortlist.size=1_000_000"], "Input should be less than or equal to 100000"),
    (["--set", "shortlist.quota=0"], "`quota` must be at least 1 for every source. Received: quota=0."),
    (["--set", "shortlist.quota=9_999_999_999"], "`quota` must be at most 100,000 for every source."),
    (["--set", "shortlist.quota={wals=3}"], "`shortlist.quota` must name exactly the sources wals, two_tower, ease."),
    (["--set", "sources.wals.l2=nan"], "`l2` of wals (wals): Input should be a finite number. Received: nan."),
    (["--set", "evaluation.cutoffs=[0]"], "`cutoffs` must be at least one number from 1 up. Received: (0,)."),
    (["--set", "split.test=0.9"], "must add up to less than 1"),
    (["--seed", "-1"], "`seed` of the configuration: Input should be greater than or equal to 0. Received: -1."),
    (["--positive-threshold", "nan"], "Input should be a finite number. Received: nan."),
    (["--force", "Evaluater"], "`Evaluater` is not a step. Known: ExampleGen, StatisticsGen,"),
    (["--config", "missing.toml"], "`--config` must be a TOML file that can be read: No such file or directory."),
]


@pytest.mark.parametrize(("arguments", "line"), SETTINGS, ids=[" ".join(a) for a, _ in SETTINGS])
def test_a_setting_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, arguments, line):
    assert line in refused("run", "--workdir", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


USAGE = [
    (["frobnicate"], "No such command 'frobnicate'. See `shortlist --help`."),
    (["run", "--bogus"], "No such option: --bogus. See `shortlist run --help`."),
    (["run", "--seed", "x"], "Invalid value for '--seed'"),
    (["recommend"], "Missing argument"),
    (["compare"], "Missing argument 'RUN...'"),
    (["compare", "run", "--samples", "0"], "Invalid value for '--samples'"),
    (["recommend", "run", "-k", "few"], "Invalid value for '-k'"),
]


@pytest.mark.parametrize(("arguments", "line"), USAGE, ids=[" ".join(a) for a, _ in USAGE])
def test_arguments_that_no_command_takes_are_refused_in_one_line_too(arguments, line):
    assert refused(*arguments).startswith(line)


def test_no_arguments_at_all_ask_for_help():
    assert cli().exit_code == 0
    assert cli().stdout == cli("--help").stdout


def test_a_stopped_run_says_how_it_goes_on(monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shortlist.trainers.two_stage.load_config", stop)
    result = cli("run")
    assert result.exit_code == 130
    assert result.stderr == "Stopped. The same command goes on from the last finished step.\n"


@pytest.mark.parametrize("text", ["a = = 1", "\udcff", "[seed\n"])
def test_a_config_that_is_no_toml_is_refused(tmp_path, text):
    (tmp_path / "x.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    line = refused("run", "--workdir", tmp_path / "run", "--config", tmp_path / "x.toml")
    assert "`--config` must be a TOML file that can be read" in line
    assert not (tmp_path / "run").exists()


def test_a_setting_of_a_config_file_gives_way_to_set(tmp_path, log):
    (tmp_path / "x.toml").write_text("seed = 3\n[split]\nstrategy = 'nope'\n")
    arguments = ("run", "--data", log, "--workdir", tmp_path / "run", "--config", tmp_path / "x.toml")
    assert "`split.strategy` of the configuration" in refused(*arguments)
    mended = refused(*arguments, "--set", "split.strategy=kfold", "--set", "split.fold=7")
    assert "`fold` must be between 0 and 4, the last fold. Received: 7." in mended


def test_train_refuses_what_is_no_model_and_names_its_own_settings(tmp_path):
    known = f"`model` must be one of {', '.join(MODELS)}. Received: 'nope'."
    assert known in refused("train", "nope", "--workdir", tmp_path / "run")
    line = refused("train", "weighted_logistic", "--workdir", tmp_path / "run", "--set", "epoks=3")
    assert "`epoks` is not a setting of weighted_logistic (weighted_logistic). Did you mean `epochs`?" in line
    line = refused("train", "wals", "--workdir", tmp_path / "run", "--set", "split.tst=0.1")
    assert "`split.tst` is not a setting of the configuration. Did you mean `test`?" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["recommend", "evaluate", "compare"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, command):
    rule = "`run` must be the folder of a finished run (`shortlist run`)."
    assert rule in refused(command, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert rule in refused(command, tmp_path / "file")
    for text in ("", "[]", "{}", '{"settings": 3, "kind": "two_stage"}'):
        (tmp_path / "run.json").write_text(text)
        assert rule in refused(command, tmp_path)


@pytest.mark.parametrize("text", ["a/wals", "a/wals:", "wals:b/wals", "a/wals:b/", ""])
def test_a_pair_is_two_systems(text):
    from shortlist.cli import _pair

    with pytest.raises(ShortlistError, match=r"^`--pair` takes A/SYSTEM:B/SYSTEM, such as .* Received: "):
        _pair(text)
    assert _pair("a:b/c/wals:d/two_stage") == ("a:b/c/wals", "d/two_stage")


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    from shortlist.cli import _run_names

    a, b, c = tmp_path / "x" / "demo", tmp_path / "y" / "demo", tmp_path / "x" / "other"
    assert _run_names([a]) == {"demo": a}
    assert _run_names([c, a]) == {"other": c, "demo": a}
    assert _run_names([a, b, c]) == {"x/demo": a, "y/demo": b, "x/other": c}
    with pytest.raises(ShortlistError, match=r"^`RUN` must be a folder that is given once\. Received: "):
        _run_names([a, tmp_path / "y" / ".." / "x" / "demo"])


# --- what a step refuses ---------------------------------------------------------------------------------------------

DATA = {
    "empty": ("", "ExampleGen", "`source` must not be empty."),
    "head only": (HEAD, "ExampleGen", "`source` must hold at least one row."),
    "text for a number": (
        f"{HEAD}{ROWS}u,i,1,good\n",
        "ExampleGen",
        "must be a finite number or empty. Received: 'good'",
    ),
    "text for a time": (f"{HEAD}{ROWS}u,i,soon,3\n", "ExampleGen", "must be seconds since 1970 or an ISO 8601 date"),
    "NaN": (
        f"{HEAD}{ROWS}u,i,1,nan\n",
        "ExampleGen",
        "must be a finite number or empty. Received: 'nan' in data row 81",
    ),
    "no id": (f"{HEAD}{ROWS},i,1,3\n", "ExampleGen", "`user` of x.csv must be there in every row. Received: ''"),
    "no column": ("user,movie\nu,i\n", "ExampleGen", "`item` must be a column of x.csv."),
    "ragged": (f"{HEAD}{ROWS}u,i\n", "ExampleGen", "`source` must be a CSV file in UTF-8."),
    "one row": (f"{HEAD}u,i,1,3\n", "Splitter", "Received: 1 rows of 1 users, 1 to train and 0 to test."),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_do_not_do_are_refused_and_leave_no_artifact(tmp_path, case):
    text, step, line = DATA[case]
    (tmp_path / "x.csv").write_text(text)
    assert line in refused("run", "--data", f"csv:{tmp_path / 'x.csv'}", "--workdir", tmp_path / "run")
    assert step not in whole(tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_file_that_is_not_there_is_refused(tmp_path):
    line = refused("run", "--data", f"csv:{tmp_path / 'gone.csv'}", "--workdir", tmp_path / "run")
    assert "`source` must be a file that can be read." in line
    assert whole(tmp_path / "run") == set()


def test_a_threshold_that_leaves_no_positive_is_refused(tmp_path, log):
    line = refused("run", "--data", log, "--workdir", tmp_path / "run", "--positive-threshold", "99", *TINY_SET)
    assert "Lower --positive-threshold" in line
    assert "Received: no positive among 48 rows, positive_threshold=99.0." in line


def test_one_user_is_refused_or_measured_but_never_a_crash(tmp_path):
    (tmp_path / "x.csv").write_text(HEAD + "".join(f"u,i{item},{item},3\n" for item in range(30)))
    line = refused("run", "--data", f"csv:{tmp_path / 'x.csv'}", "--workdir", tmp_path / "run", *TINY_SET)
    assert "`shortlist` holds no positive of rank_train" in line
    assert "CandidateGenerator" not in whole(tmp_path / "run")


def test_a_name_in_brackets_is_not_taken_for_markup(tmp_path):
    file = tmp_path / "a[" / "red].csv"  # a closing tag, as far as its path goes: "[/red]"
    file.parent.mkdir()
    file.write_text(f"{HEAD}u,i,1,3\n")
    line = refused("run", "--data", f"csv:{file}", "--workdir", tmp_path / "b[" / "blue]")
    assert "`per_user_time` needs interactions" in line
    (tmp_path / "[red].csv").write_text(f"{HEAD}u,i,1,3\n")
    result = cli("run", "--data", f"csv:{tmp_path / '[red].csv'}", "--workdir", tmp_path / "[blue]")
    assert f"{tmp_path / '[red].csv'} → {tmp_path / '[blue]'}" in flat(result.stderr)
    assert "[red].csv: 1 rows" in flat(result.stderr)


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_an_archive_that_is_missing_or_not_the_official_one_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "ml-latest-small.zip").write_bytes(content)
    arguments = ("--data", "tfds:movielens/latest-small", "--archive-dir", tmp_path, "--workdir", tmp_path / "run")
    rule = "the official archive, unchanged" if content else "the folder that holds ml-latest-small.zip"
    assert rule in refused("run", *arguments)
    assert whole(tmp_path / "run") == set()


def test_an_unknown_set_is_refused(tmp_path):
    line = refused("run", "--data", "tfds:movielens/9m", "--workdir", tmp_path / "run")
    assert "`source` must be one of tfds:movielens/100k" in line


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path, log):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        line = refused("run", "--data", log, "--workdir", workdir)
        assert f"`workdir` {workdir} cannot be written" in line


def test_a_workdir_in_use_is_refused(tmp_path, log):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refused("run", "--data", log, "--workdir", tmp_path / "run")
    assert "is in use by another run. Wait for it to end, or give another --workdir." in line
    assert whole(tmp_path / "run") == set()


def test_the_real_command_refuses_with_exit_code_2(tmp_path):
    arguments = ("run", "--workdir", str(tmp_path / "run"), "--set", "sources.wals.embeding_dim=3")
    done = subprocess.run(small_run.command(*arguments), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "Error: `embeding_dim` is not a setting of wals (wals). Did you mean `embedding_dim`?"
