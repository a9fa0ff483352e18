"""WALS whose rows are shared by replicas: what one replica finds, and the bytes that each holds and receives."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import wals_replicas
from cluster_cases import Processes

from shortlist import ShortlistError
from shortlist.models.wals import WALS

USERS, ITEMS, DIM = 37, 22, wals_replicas.OPTIONS["embedding_dim"]
SCRIPT = str(Path(wals_replicas.__file__))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """observed, target and weight `[U, I]`: an empty user, an empty item, and items that one user alone has."""
    rng = np.random.default_rng(0)
    observed = rng.random((USERS, ITEMS)) < 0.2
    observed[3], observed[:, 4] = False, False
    path = tmp_path_factory.mktemp("replicas") / "matrix.npy"
    np.save(path, [observed, rng.normal(size=observed.shape), rng.uniform(0, 3, size=observed.shape)])
    return str(path)


@pytest.fixture(scope="module")
def mirrored(file: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, SCRIPT, "mirrored", file], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def alone(file: str, **options: Any) -> dict[str, Any]:
    x, c = wals_replicas.matrix(file)
    model = WALS(**wals_replicas.OPTIONS, **options)
    return wals_replicas.found(model, model.fit(x, sample_weight=c, validation_data=x, epochs=4, verbose=0))


def check(shared: dict[str, Any], one: dict[str, Any], first: int = 0) -> None:
    """The same, but for the order in which Gramians are added up."""
    assert shared["epoch"] == one["epoch"][first:]
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(shared[name], one[name][first:], rtol=1e-6)
    for found, expected in zip(shared["weights"], one["weights"], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize(("solver", "backend"), [("cholesky", "numba"), ("cg", "numba"), ("block", "tensorflow")])
def test_replicas_find_what_one_finds(
    mirrored: dict[str, Any], file: str, solver: str, backend: str, replicas: int
) -> None:
    check(mirrored[f"{solver} {replicas}"], alone(file, solver=solver, backend=backend, block_size=2))


def test_a_model_that_is_built_in_the_scope_finds_the_same(mirrored: dict[str, Any], file: str) -> None:
    check(mirrored["built inside"], alone(file))


@pytest.mark.parametrize("replicas", [2, 4])
def test_what_a_replica_holds_and_receives(mirrored: dict[str, Any], file: str, replicas: int) -> None:
    observed = np.load(file)[0] > 0
    shares = [observed[:, replica::replicas] for replica in range(replicas)]  # of the items
    needs = [share.any(1) for share in shares]  # of the users
    held = [
        2 * 4 * DIM * share.shape[1] + 4 * DIM * need.sum() + 8 * (share.shape[1] + 1) + 12 * share.sum()
        for share, need in zip(shares, needs, strict=True)
    ]
    found = mirrored[f"bytes {replicas}"]
    assert found["held"] == held
    given = [
        sum(any(need[user] for r, need in enumerate(needs) if r != owner) for user in range(owner, USERS, replicas))
        for owner in range(replicas)
    ]
    sums = sum(2 * 8 * numbers * (replicas - 1) // replicas for numbers in (DIM**2, 1))
    assert found["received"] == (replicas - 1) * max(given) * DIM * 4 + sums


def test_a_system_without_one_solution_is_named(mirrored: dict[str, Any]) -> None:
    assert mirrored["no solution"].startswith(
        "`l2` must be large enough for one solution a row: the factors of row 0 of the items are not finite."
    )


def test_data_sets_are_not_shared(mirrored: dict[str, Any]) -> None:
    assert mirrored["data sets"] == (
        "`x` must be a matrix where replicas share the training; data sets are read by one. "
        "Received: strategy='MirroredStrategy'."
    )


def test_parameter_servers_are_refused(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = object.__new__(tf.distribute.ParameterServerStrategy)  # a real one needs the processes first
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: strategy)
    with pytest.raises(ShortlistError) as error:
        alone(file)
    assert str(error.value) == (
        "`WALS` must be trained by replicas that own its rows: without a strategy, mirrored or multi_worker. "
        "Received: strategy='ParameterServerStrategyV2'."
    )


def test_two_processes_of_which_one_is_killed_end_as_one_alone(file: str, tmp_path: Path) -> None:
    def command(kill: int) -> list[str]:
        return [sys.executable, SCRIPT, "multi_worker", file, str(tmp_path / "checkpoints"), str(kill)]

    with Processes({"worker": 2}, tmp_path) as processes:
        for index in range(2):
            processes.start(command(kill=index or -1), "worker", index)
        processes.ended("worker1", 120, -signal.SIGKILL)
    with Processes({"worker": 2}, tmp_path) as processes:
        processes.start_all(command(kill=-1))
        for index in range(2):
            shared = json.loads(processes.ended(f"worker{index}", 120).splitlines()[-1])
            assert shared["replicas"] == 2
            check(shared, alone(file), first=1)
