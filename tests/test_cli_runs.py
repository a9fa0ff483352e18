"""The command line on a small log: what a run prints, what it runs again, and what can be asked of it afterwards."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import small_run
from cli_cases import cli, flat, metrics_of, refused
from small_run import ITEMS, STEPS, SYSTEMS

from shortlist.components.compare import compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return small_run.finished(tmp_path_factory)


@pytest.fixture
def run(home, tmp_path) -> Path:
    """A copy of the finished run."""
    return small_run.copied(home, tmp_path / "run")


def recommended(stdout: str) -> list[tuple[int, float, str]]:
    """Item, score and source of each line of a table of recommendations."""
    lines = re.findall(r"Film (\d+) +(-?\d+\.\d{3}) +(\S+)$", stdout, re.MULTILINE)
    return [(int(item), float(score), source) for item, score, source in lines]


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_prints_figures_recommendations_and_how_to_serve(home):
    stdout, stderr = (home / "stdout").read_text(), (home / "stderr").read_text()
    metrics = metrics_of(home / "run")
    for name, values in metrics["systems"].items():
        ndcg = values["ndcg@10"]
        assert f"│ {name} " in stdout
        assert f"{ndcg['value']:.3f} [{ndcg['low']:.3f}, {ndcg['high']:.3f}]" in stdout
    assert "log.parquet. Licence: not stated" in stdout
    assert len(recommended(stdout)) == 10
    version = home / "run" / "pushed" / "shortlist" / "1"
    assert f"\nPushed: {version}\n" in stdout
    assert f"--model_name=shortlist --model_base_path={version.parent}\n" in stdout
    assert (version / "saved_model.pb").exists()
    report, page, code = stdout.splitlines()[-3:]
    assert (report, code) == (f"Report: {home / 'run' / 'report.html'}", "exit code 0")
    assert re.fullmatch(rf"Try it in a browser: (\S*/)?shortlist serve {home / 'run'}", page)
    assert f"{STEPS} steps run, 0 from the cache" in stderr
    assert list(small_run.steps(stderr).values()) == [True] * STEPS
    assert "Traceback" not in stderr


def test_the_metrics_of_a_run_have_the_documented_form(home):
    metrics = metrics_of(home / "run")
    assert metrics["data"] == f"parquet:{home / 'log.parquet'}"
    assert (metrics["split"], metrics["seed"], metrics["blessed"], metrics["reasons"]) == ("test", 0, True, [])
    assert list(metrics["systems"]) == SYSTEMS
    for values in metrics["systems"].values():
        for name in (
            f"{metric}@{k}" for metric in ("ndcg", "hr", "recall", "precision", "mrr", "map") for k in (10, 20)
        ):
            assert set(values[name]) == {"value", "low", "high", "users"}
            assert 0 <= values[name]["low"] <= values[name]["value"] <= values[name]["high"] <= 1
            assert values[name]["users"] == small_run.USERS
    best = max(metrics["systems"], key=lambda name: metrics["systems"][name]["ndcg@10"]["value"])
    assert best == "two_stage"
    assert all(c["low"] > 0 for c in metrics["comparisons"] if c["system"] == "two_stage")


def test_the_same_command_again_takes_every_step_from_the_cache(home, run):
    again = cli(*small_run.run_arguments(home, run))
    assert again.exit_code == 0
    assert f"0 steps run, {STEPS} from the cache" in again.stderr
    assert list(small_run.steps(again.stderr).values()) == [False] * STEPS
    assert metrics_of(run) == metrics_of(home / "run")
    assert recommended(again.stdout) == recommended((home / "stdout").read_text())


def test_a_ranker_that_does_not_learn_is_trained_anew_and_not_pushed(home, run):
    """Nothing but what depends on the ranker runs, and what was pushed before (here: nothing) stays as it is."""
    change = ("--set", "ranker.epochs=1", "--set", "ranker.learning_rate=1e-9")
    result = cli(*small_run.run_arguments(home, run), *change)
    assert result.exit_code == 3
    ran = [name for name, did in small_run.steps(result.stderr).items() if did]
    assert ran == ["Trainer.weighted_logistic", "Evaluator", "Reporter", "Exporter", "InfraValidator", "Pusher"]
    assert f"\nReport: {run / 'report.html'}\n" in result.stdout
    assert result.stdout.rstrip().endswith(f"shortlist serve {run}")
    assert "**Not blessed.**" in (run / "report.md").read_text()
    metrics = metrics_of(run)
    assert not metrics["blessed"]
    assert metrics["reasons"]
    assert "Not pushed." in result.stdout
    assert all(flat(reason) in flat(result.stdout) for reason in metrics["reasons"])
    assert "Serve it" not in result.stdout
    assert not (run / "pushed").exists()
    assert len(recommended(result.stdout)) == 10
    other = metrics_of(home / "run")["systems"]
    assert {n: v for n, v in metrics["systems"].items() if v != other[n]}.keys() == {"two_stage"}

    note = "This run was not blessed, so nothing was pushed: these come from its exported bundle."
    asked = cli("recommend", run, "--user", "u7")
    assert asked.exit_code == 0
    assert note in flat(asked.stderr)
    assert len(recommended(asked.stdout)) == 10


def test_a_forced_step_runs_alone(home, run):
    result = cli(*small_run.run_arguments(home, run), "--force", "Evaluator")
    assert result.exit_code == 0
    assert [name for name, did in small_run.steps(result.stderr).items() if did] == ["Evaluator"]
    assert metrics_of(run) == metrics_of(home / "run")


def test_a_push_under_another_name_is_a_push(home, run):
    result = cli(*small_run.run_arguments(home, run), "--set", "push.name=films")
    assert result.exit_code == 0
    assert [name for name, did in small_run.steps(result.stderr).items() if did] == ["Pusher"]
    assert "--model_name=films" in result.stdout
    assert (run / "pushed" / "films" / "1" / "saved_model.pb").exists()
    asked = cli("recommend", run, "--user", "u7", "-k", "1")
    assert asked.exit_code == 0
    assert asked.stderr == ""


def test_what_was_rolled_back_is_not_pushed_again(home, run):
    arguments = small_run.run_arguments(home, run)
    assert cli(*arguments, "--force", "Pusher").exit_code == 0
    again = cli(*arguments, "--force", "Pusher", "--keep", "3")
    assert again.exit_code == 0
    versions = run / "pushed" / "shortlist"
    back = cli("rollback", run)
    assert (back.exit_code, back.stdout) == (0, f"Rolled back: 2. Served now: {versions / '1'}\n")
    same = cli(*arguments, "--keep", "3")
    assert same.exit_code == 0
    assert "Version 2 was rolled back: it is not pushed again." in same.stderr
    assert sorted(p.name for p in versions.iterdir() if p.is_dir()) == ["1", "rolled-back-2"]
    assert cli("rollback", versions).exit_code == 2


# --- what is done with a run -----------------------------------------------------------------------------------------


def test_evaluate_measures_with_other_cut_offs_on_another_split(run):
    before = metrics_of(run)
    same = cli("evaluate", run, "-k", "20", "-k", "10")
    assert same.exit_code == 0
    assert not any(small_run.steps(same.stderr).values())
    other = cli("evaluate", run, "-k", "5", "-k", "10", "--split", "validation")
    assert other.exit_code == 0
    assert [name for name, did in small_run.steps(other.stderr).items() if did] == ["Evaluator", "Reporter"]
    report = Path(re.search(r"^Report: (.+)$", other.stdout, re.MULTILINE).group(1))
    assert "Measured on `validation`." in report.with_name("report.md").read_text()
    assert report.read_text().startswith("<!DOCTYPE html>")
    assert "validation: means over users" in flat(other.stdout)
    assert "NDCG@5" in other.stdout
    written = max(run.glob("artifacts/Evaluator/*/metrics.json"), key=lambda path: path.stat().st_mtime_ns)
    metrics = metrics_of(written.parent)
    assert metrics["split"] == "validation"
    for system, values in metrics["systems"].items():
        assert f"{values['ndcg@5']['value']:.3f} [{values['ndcg@5']['low']:.3f}," in other.stdout, system
    assert metrics_of(run) == before


def test_evaluate_refuses_what_does_not_fit(run):
    assert "`split` of the evaluation" in refused("evaluate", run, "--split", "bogus")
    assert "`cutoffs` must be at least one number from 1 up. Received: (0,)." in refused("evaluate", run, "-k", "0")
    line = refused("evaluate", run, "-k", str(ITEMS + 1))
    assert f"`evaluation.cutoffs` must be at most the {ITEMS} items of the catalogue. Received: {ITEMS + 1}." in line


def table_of(stdout: str) -> list[list[str]]:
    rows = [line.strip("│").split("│") for line in stdout.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


def shown(differences: list[dict], run: str = "") -> list[list[str]]:
    rows = []
    for d in differences:
        numbers = f"{d['difference']:+.4f}", f"{d['low']:+.4f}, {d['high']:+.4f}", f"{d['p']:.4f}", f"{d['p_holm']:.4f}"
        rows.append([d["metric"], d["system"].removeprefix(run), d["against"].removeprefix(run), *numbers])
        rows[-1].append(str(d["users"]))
    return rows


def evaluation_of(run: Path) -> Path:
    """The one that run/metrics.json is of: the run was asked for nothing else."""
    (folder,) = (path.parent for path in run.glob("artifacts/Evaluator/*/metrics.json"))
    return folder


@pytest.fixture
def worse(home, tmp_path) -> Path:
    """A copy of the run whose WALS ranks nothing right for the users with an even row."""
    other = small_run.copied(home, tmp_path / "worse")
    file = evaluation_of(other) / "per_user.parquet"
    table = pq.read_table(file).to_pandas()
    table.loc[(table["system"] == "wals") & (table.index % 2 == 0), "ndcg@10"] = 0.0
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), file)
    return other


def test_compare_shows_what_differs_between_two_runs(run, worse, tmp_path):
    arguments = ("--metric", "ndcg@10", "--samples", "300", "--seed", "4", "--json", tmp_path / "x.json")
    result = cli("compare", run, worse, *arguments)
    assert result.exit_code == 0
    folders = {"run": evaluation_of(run), "worse": evaluation_of(worse)}
    expected = compare(folders, metrics=["ndcg@10"], samples=300, seed=4)
    assert table_of(result.stdout) == shown(expected["differences"])
    assert {d["system"]: d["difference"] < 0 for d in expected["differences"]} == {
        f"worse/{system}": system == "wals" for system in SYSTEMS
    }
    assert json.loads((tmp_path / "x.json").read_text()) == expected
    assert "test: means over users of system − against" in result.stdout
    assert f"p corrected: by Holm's rule, for the {len(SYSTEMS)} differences of this table." in result.stdout
    one = cli("compare", run, worse, "--metric", "mrr@10", "--pair", "worse/two_stage:run/wals")
    assert table_of(one.stdout) == shown(compare(folders, [("worse/two_stage", "run/wals")], ["mrr@10"])["differences"])
    assert "for the one difference of this table" in one.stdout


def test_compare_of_one_run_sets_the_two_stage_order_against_the_rest(run):
    result = cli("compare", run)
    expected = compare({"run": evaluation_of(run)})["differences"]
    assert table_of(result.stdout) == shown(expected, "run/")
    assert [(d["metric"], d["against"]) for d in expected] == [
        (metric, f"run/{system}") for metric in ("ndcg@10", "recall@20") for system in SYSTEMS[:-1]
    ]


def test_compare_refuses_what_is_unknown_and_runs_that_are_no_pairs(run, worse, tmp_path):
    line = refused("compare", run, worse, "--metric", "ndgc@10")
    assert "among the metrics of run. Received: ndgc@10. Did you mean `ndcg@10`?" in line
    line = refused("compare", run, "--pair", "run/two_stage:run/walls")
    assert "`pairs` must be among the systems. Received: run/walls. Did you mean `run/wals`?" in line
    assert "`--pair` takes A/SYSTEM:B/SYSTEM" in refused("compare", run, "--pair", "two_stage:wals")
    line = refused("compare", run, "--pair", "run/wals:run/item_knn", "--metric", "user_auc")
    assert "`--metric` must be one that both systems of a pair have. Received: user_auc." in line
    assert "`--json` must be a file that can be written:" in refused("compare", run, "--json", tmp_path / "no" / "x")
    metrics = evaluation_of(worse) / "metrics.json"
    before = metrics.read_text()
    for key in ("data", "split"):
        metrics.write_text(json.dumps({**json.loads(before), key: "another"}))
        line = f"`runs` must have the same {key}, or their users' figures are no pairs."
        assert line in refused("compare", run, worse)
    metrics.write_text(before)
    file = evaluation_of(worse) / "per_user.parquet"
    table = pq.read_table(file)
    pq.write_table(table.filter(pc.not_equal(table["user"], "u5")), file)
    users = small_run.USERS
    line = f"`runs` must be of the same users. Received: {users} in run, {users - 1} in worse, {users - 1} of them in"
    assert line in refused("compare", run, worse)
    pq.write_table(table.filter(pc.equal(table["system"], "wals")), file)
    assert "`runs` must have two systems to compare. Received: worse/wals." in refused("compare", worse)
    shutil.rmtree(worse / "artifacts" / "Evaluator")
    assert "whose artifacts are gone. Run it again." in refused("compare", run, worse)


def test_recommend_gives_a_known_user_what_is_new_to_them(home):
    log = pq.read_table(home / "log.parquet").to_pandas()
    watched = log[log["user"] == "u5"].sort_values("timestamp")["item"].str.removeprefix("i").astype(int).tolist()
    result = cli("recommend", home / "run", "--user", "u5", "-k", "7")
    assert result.exit_code == 0
    rows = recommended(result.stdout)
    assert len(rows) == 7
    assert not {item for item, _, _ in rows} & set(watched)
    assert [score for _, score, _ in rows] == sorted((score for _, score, _ in rows), reverse=True)
    assert all(set(source.split("+")) <= {"wals", "two_tower", "ease"} for _, _, source in rows)
    shown = [int(item) for item in re.findall(r"^Film (\d+)", result.stdout, re.MULTILINE)]
    assert shown == watched[::-1][:7]
    everything = recommended(cli("recommend", home / "run", "--user", "u5", "-k", "3000000000").stdout)
    assert sorted([item for item, _, _ in everything] + watched) == list(range(ITEMS))


def test_recommend_gives_an_unknown_user_what_is_popular(home):
    result = cli("recommend", home / "run", "--user", "nobody")
    assert result.exit_code == 0
    train = pq.read_table(next(home.glob("run/artifacts/Splitter/*/train.parquet")))["item"].to_pandas()
    counts = train.value_counts()
    rows = recommended(result.stdout)
    assert [(score, source) for _, score, source in rows] == [(count, "popularity") for count in counts[:10]]
    assert all(counts[f"i{item}"] == score for item, score, _ in rows)


def test_recommend_follows_a_given_history(home):
    history = [f"i{item}" for item in (1, 5, 9, 13)]
    words = [word for item in history for word in ("--history", item)]
    result = cli("recommend", home / "run", *words)
    assert result.exit_code == 0
    items = [item for item, _, _ in recommended(result.stdout)]
    assert not set(items) & {1, 5, 9, 13}
    assert np.mean([item % 4 == 1 for item in items]) > 0.5
    assert re.findall(r"^Film (\d+)", result.stdout, re.MULTILINE) == ["13", "9", "5", "1"]
    assert recommended(cli("recommend", home / "run", "--user", "u5", *words).stdout) != recommended(
        cli("recommend", home / "run", "--user", "u5").stdout
    )


def test_recommend_refuses_no_items_and_a_run_whose_bundle_is_gone(run):
    assert "`-k` must be at least 1. Received: 0." in refused("recommend", run, "-k", "0")
    shutil.rmtree(run / "artifacts" / "Exporter")
    assert "whose artifacts are gone. Run it again." in refused("recommend", run)


def test_train_alone_shows_the_model_beside_the_baselines(home, tmp_path):
    import tensorflow as tf

    settings = ("embedding_dim=4", "epochs=1", "evaluation.cutoffs=[10]", f"data.items={home / 'items.csv'}")
    words = [word for setting in settings for word in ("--set", setting)]
    result = cli("train", "wals", "--data", f"parquet:{home / 'log.parquet'}", "--workdir", tmp_path / "run", *words)
    assert result.exit_code == 0
    assert list(metrics_of(tmp_path / "run")["systems"]) == ["popularity", "popularity_recent", "item_knn", "wals"]
    path = re.search(r"^Model: (\S+model\.keras)$", result.stdout, re.MULTILINE).group(1)
    assert tf.keras.models.load_model(path).embedding_dim == 4
    assert "must hold a bundle: one of `shortlist run`" in refused("recommend", tmp_path / "run")
    assert cli("evaluate", tmp_path / "run", "-k", "3").exit_code == 0


def test_train_of_the_ranker_goes_up_to_its_figures(home, run):
    arguments = small_run.run_arguments(home, run)
    settings = [word.removeprefix("ranker.") for word in arguments[1:]]
    result = cli("train", "weighted_logistic", *settings)
    assert result.exit_code == 0
    found = small_run.steps(result.stderr)
    assert list(found)[-3:] == ["Trainer.weighted_logistic", "Evaluator", "Reporter"]
    assert not any(found.values())  # the same settings as those of the run
    assert list(metrics_of(run)["systems"]) == SYSTEMS
    assert re.search(r"^Model: \S+/Trainer\.weighted_logistic/\w+/model\.keras$", result.stdout, re.MULTILINE)
