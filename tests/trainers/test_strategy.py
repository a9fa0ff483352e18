"""Training on several replicas gives what training on one does: on two devices, in two processes, with servers."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_run
from cli_cases import refused
from cluster_cases import Processes, tf_config

from shortlist import ShortlistError
from shortlist.components import _training
from shortlist.components._cluster import Cluster, ClusterConfig, read_cluster
from shortlist.trainers._common import Share
from shortlist.trainers.two_stage import load_config

SCRIPT = Path(__file__).parents[1] / "replica_losses.py"
SHARED = ("in_batch", "full", "camf", "ranker")
STEP = 1e-3


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[float]]]:
    """By case, the losses of 50 steps on one device and on two."""
    cases = [*SHARED, "streaming", "content_based", "hybrid"]
    command = [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("alone")), *cases]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_two_devices_follow_one(two_devices):
    for name, (one, two) in two_devices.items():
        assert len(one) == 10  # every fifth step, or the mean of five
        assert one[-1] < 0.99 * one[0], name  # it learns, so that what it follows is not a constant
        np.testing.assert_allclose(two, one, rtol=STEP, err_msg=name)


@pytest.mark.slow
def test_two_processes_follow_one(two_devices, tmp_path):
    with Processes({"worker": 2}, tmp_path, {"STRATEGY": "multi_worker"}) as processes:
        processes.start_all([sys.executable, str(SCRIPT), str(tmp_path), *SHARED])
        outputs = [processes.ended(name, 240) for name in ("worker0", "worker1")]
    for output in outputs:
        losses = json.loads(output)
        assert set(losses) == set(SHARED)
        for name, values in losses.items():
            np.testing.assert_allclose(values, two_devices[name][0], rtol=STEP, err_msg=name)


LEAST = {"in_batch": 0.7, "full": 0.7, "camf": -0.3, "ranker": 0.7}
"""What a model that has learned something reaches: of 58 items, 9 in 10 labels can be known."""


@pytest.mark.slow
def test_workers_and_servers_learn_what_one_machine_does(tmp_path):
    with Processes({"chief": 1, "worker": 2, "ps": 2}, tmp_path, {"STRATEGY": "parameter_server"}) as processes:
        processes.start_all([sys.executable, str(SCRIPT), str(tmp_path), *LEAST])
        found = json.loads(processes.ended("chief0", 280))
    rng = np.random.default_rng(0)
    for name, least in LEAST.items():
        one, many = map(np.array, found[name])
        low, high = np.quantile(rng.choice(one, (2000, len(one))).mean(axis=1), [0.025, 0.975])
        assert one.mean() > least, name
        assert low <= many.mean() <= high, name


def arguments(home: Path, workdir: Path, *settings: str) -> list[str]:
    log = ["--data", f"parquet:{home / 'log.parquet'}", "--workdir", str(workdir)]
    own = ("embedding_dim=8", "dropout=0", "content=false", "evaluation.cutoffs=[10,20]", "evaluation.samples=100")
    return ["train", "two_tower", *log, *(word for s in (*own, *settings) for word in ("--set", s))]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_that_is_killed_and_started_again_changes_nothing(tmp_path):
    """By the commands: two devices that train without an end between, and two processes of which one is lost."""
    small_run.write_log(tmp_path)
    shared = ["--strategy", "multi_worker", "--set", "cluster.timeout=120"]
    alone = ["--strategy", "mirrored", "--set", "cluster.devices=2"]
    command = small_run.command(*arguments(tmp_path, tmp_path / "run", "epochs=40"), *shared)
    saved = tmp_path / "run" / "artifacts" / "Trainer.two_tower"
    with Processes({"worker": 2}, tmp_path, small_run.environment()) as processes:
        processes.start_all(command)
        deadline = time.monotonic() + 200
        while not list(saved.glob("*.backup/chief/ckpt-3.index")):
            assert time.monotonic() < deadline, processes.said()
            assert processes.running["worker0"].poll() is None, processes.said()
            time.sleep(0.02)
        processes.kill("worker1")
        processes.start(command, "worker", 1)
        processes.ended("worker0", 240)
        processes.ended("worker1", 60)
        assert "another process was lost" in processes.errors("worker0")
    done = subprocess.run(
        small_run.command(*arguments(tmp_path, tmp_path / "alone", "epochs=40"), *alone),
        capture_output=True,
        text=True,
        env=small_run.environment(),
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, expected = (
        json.loads((tmp_path / run / "metrics.json").read_text())["systems"]["two_tower"] for run in ("run", "alone")
    )
    for name in ("ndcg@10", "hr@10", "recall@20"):
        assert found[name]["value"] == pytest.approx(expected[name]["value"], abs=2e-3), name
    for folder, strategy in (("run", "multi_worker"), ("alone", "mirrored")):
        (model,) = (tmp_path / folder / "artifacts" / "Trainer.two_tower").glob("*/model.json")
        assert json.loads(model.read_text())["config"]["strategy"] == strategy
    assert not list(saved.glob("*.backup"))


def test_who_does_not_come_is_named(tmp_path):
    """The training process is ended as well: it would wait for ever."""
    with Processes({"worker": 2}, tmp_path) as processes:
        there = processes.jobs["worker"][1]
        cluster = Cluster("multi_worker", processes.jobs, "worker", 0, ClusterConfig(timeout=1))
        with pytest.raises(ShortlistError, match=f"names worker 1 at {there}, which did not come within 1 seconds"):
            _training.train_together("nothing:at_all", None, {}, tmp_path / "out", tmp_path / "backup", cluster)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("run", "--strategy", "tpu"), "`strategy` of the configuration: Input should be 'none', 'mirrored',"),
        (("run", "--strategy", "parameter_server"), "`strategy` of wals can be none, mirrored, multi_worker."),
        (("train", "two_tower", "--strategy", "parameter_server"), "`TF_CONFIG` must name the chief, the workers and"),
        (("train", "ease", "--strategy", "mirrored"), "`strategy` of ease can be none. Received: mirrored."),
    ],
)
def test_the_commands_hand_the_strategy_on(given, message, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert message in refused(*given, "--workdir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_chief_that_does_not_come_is_named(tmp_path):
    cluster = Cluster("multi_worker", {"worker": ["a:1", "b:2"]}, "worker", 1, ClusterConfig(timeout=0.3))
    with pytest.raises(ShortlistError, match="names worker 0 at a:1, which did not come within"):
        cluster.wait_for_chief(lambda: False, tmp_path)


@pytest.mark.parametrize(
    ("text", "strategy", "message"),
    [
        ("{", "multi_worker", "must be JSON"),
        ("[]", "multi_worker", "must have `cluster`"),
        ('{"cluster": {}, "task": {"type": "worker"}}', "multi_worker", "must have `cluster`"),
        (tf_config({"worker": ["a:1"]}, "boss", 0), "multi_worker", "roles chief, worker .* Received: boss"),
        (tf_config({"worker": ["a:1"], "ps": ["b:1"]}, "worker", 0), "multi_worker", "Received: ps"),
        (tf_config({"worker": ["a:1", "b:1"]}, "worker", 2), "multi_worker", "address of this process.*index 2 of 2"),
        (tf_config({"worker": ["a:1"]}, "chief", 0), "multi_worker", "address of this process.*index 0 of 0"),
        (tf_config({"worker": ["a:1", "a"]}, "worker", 0), "multi_worker", "host:port. Received: a"),
        (tf_config({"worker": ["a:1", "a:1"]}, "worker", 0), "multi_worker", "of its own. Received: a:1"),
        (tf_config({"worker": ["a:1"]}, "worker", 0), "parameter_server", "needs one chief"),
        ("", "parameter_server", "must name the chief"),
    ],
)
def test_a_tf_config_that_says_something_else_is_refused(monkeypatch, text, strategy, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ShortlistError, match=message) as error:
        read_cluster(strategy)
    assert "\n" not in str(error.value)


def test_a_tf_config_is_read(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "worker", 1))
    cluster = read_cluster("multi_worker")
    assert cluster is not None
    assert (cluster.is_chief, cluster.trains, cluster.name(*cluster.chief)) == (False, True, "chief 0 at a:1")
    assert read_cluster("mirrored") is None
    monkeypatch.setenv("TF_CONFIG", tf_config({"worker": ["a:1"]}, "worker", 0))
    assert read_cluster("multi_worker") is None  # one process is no cluster


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "tpu"}, "`strategy`.*'none', 'mirrored', 'multi_worker' or 'parameter_server'.*tpu"),
        ({"strategy": "parameter_server"}, "`strategy` of wals can be none, mirrored, multi_worker. Received: param"),
        ({"sources.ease.strategy": "mirrored"}, "`strategy` of ease can be none. Received: mirrored"),
        (
            {"strategy": "mirrored", "sources.two_tower.softmax": "hard"},
            "`strategy` of two_tower can be none. Received: mirrored",
        ),
        (
            {"sources.two_tower.strategy": "parameter_server", "sources.two_tower.log_q": "streaming"},
            "of two_tower can be none, mirrored, multi_worker. Received: parameter_server",
        ),
    ],
)
def test_a_strategy_that_a_model_does_not_support_is_refused(settings, message):
    with pytest.raises(ShortlistError, match=message):
        load_config(None, settings)


def test_a_strategy_goes_to_what_trains_by_steps_alone():
    config = load_config(None, {"strategy": "mirrored", "sources.wals.strategy": "none"})
    from shortlist.trainers.two_stage import two_stage

    steps = two_stage(config).steps
    found = {name: step.component.config.strategy for name, step in steps.items() if name.startswith("Trainer.")}
    assert found["Trainer.two_tower"] == found["Trainer.weighted_logistic"] == "mirrored"
    assert {found[f"Trainer.{name}"] for name in ("wals", "ease", "popularity", "item_knn")} == {"none"}


@pytest.mark.parametrize("size", [0, 1, 5, 7, 64])
def test_shares_are_the_whole_batch(size):
    shares = [Share(first, count, 7) for first, count in ((0, 2), (2, 2), (4, 3))]
    parts = [part for share in shares for part in share.slices(100, size)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(100, 100 + size))
    assert {part.stop - part.start for part in parts} <= {size // 7, size // 7 + 1}
