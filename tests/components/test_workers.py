"""A chief and its workers as processes, some of which are killed on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import sweep_worker
from sweep_worker import SPACE, command, lines

from shortlist import ShortlistError
from shortlist.components import _workers
from shortlist.components._trials import TrialRecord
from shortlist.components.tuner import read_trials


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (_workers.IP, _workers.PORT, _workers.TUNER_ID, _workers.SUPERVISOR):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")


def progress(folder: Path) -> Callable[[], list[tuple[str, str]]]:
    return lambda: [(r.trial, r.status) for r in read_trials(folder, SPACE)]


class Watched(threading.Thread):
    """Runs the supervisor, while the test looks on."""

    def __init__(self, folder: Path, workers: int, **options: object):
        super().__init__()
        self.folder, self.error = folder, None
        self.arguments = (command(folder, **options), workers, folder / "logs", progress(folder))
        self.started: list[_workers._Process] = []

    def __enter__(self) -> "Watched":
        self.folder.mkdir()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()
        if self.error:
            raise self.error

    def run(self) -> None:
        try:
            _workers.supervise(*self.arguments)
        except BaseException as error:
            self.error = error

    def wait(self, until: Callable[[], object]) -> None:
        end = time.time() + 60
        while not until():
            assert self.is_alive(), self.logs()
            assert time.time() < end, self.logs()
            time.sleep(0.05)

    def logs(self) -> str:
        return "\n".join(f"{f.name}: {f.read_text()[-2000:]}" for f in sorted((self.folder / "logs").iterdir()))

    def finished(self) -> list[TrialRecord]:
        return [r for r in read_trials(self.folder, SPACE) if r.status == "completed"]


def runs(folder: Path, event: str) -> Counter[str]:
    return Counter(str(line["trial"]) for line in lines(folder) if line["event"] == event)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_worker_that_is_killed_comes_back_to_its_trial(tmp_path: Path):
    folder = tmp_path / "search"
    with Watched(folder, 2, trials=8) as sweep:
        sweep.wait(lambda: len(sweep.finished()) >= 2 and {line["worker"] for line in lines(folder)} >= {"worker1"})
        sweep.wait(lambda: lines(folder)[-1]["event"] == "begins")
        victim = lines(folder)[-1]
        os.kill(victim["pid"], signal.SIGKILL)
    records = read_trials(folder, SPACE)
    assert [(r.trial, r.status) for r in records] == [(str(n), "completed") for n in range(8)]
    again = [line for line in lines(folder) if line["trial"] == victim["trial"]]
    assert [line["event"] for line in again] == ["begins", "begins", "measured"]
    assert {line["worker"] for line in again} == {victim["worker"]}
    assert len({line["pid"] for line in again}) == 2
    assert again[0]["settings"] == again[1]["settings"]
    assert runs(folder, "measured") == {str(n): 1 for n in range(8)}
    assert {r.worker for r in records} == {"worker0", "worker1"}
    for line in lines(folder):  # a worker sees what the chief has in its file
        own = records[int(str(line["trial"]))]
        assert line["settings"] == own.settings
        assert own.objective == pytest.approx(sweep_worker.value(own.settings))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_chief_that_is_killed_goes_on_from_its_file(tmp_path: Path):
    """Even when a worker waits for its answer: it asks again, and nothing is run or counted twice."""
    folder = tmp_path / "search"
    with Watched(folder, 2, trials=8, dies=True):
        pass
    assert (folder / "unwritten").exists()
    assert (folder / "untold").exists()
    assert [(r.trial, r.status) for r in read_trials(folder, SPACE)] == [(str(n), "completed") for n in range(8)]
    assert runs(folder, "begins") == runs(folder, "measured") == {str(n): 1 for n in range(8)}
    assert len({line["pid"] for line in lines(folder)}) == 2  # no worker has died of it
    state = json.loads((folder / "oracle.json").read_text())["oracle"]
    assert sorted(state["end_order"]) == [str(n) for n in range(8)]
    assert set(state["run_times"].values()) == {1}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_trial_that_kills_its_worker_fails_and_the_others_finish(tmp_path: Path):
    folder = tmp_path / "search"
    with Watched(folder, 1, trials=4, seconds=0.0, kill="2"):
        pass
    records = read_trials(folder, SPACE)
    assert [r.status for r in records] == ["completed", "completed", "failed", "completed"]
    assert records[2].message.startswith("its process died 2 times.")
    assert runs(folder, "begins") == {"0": 1, "1": 1, "2": 2, "3": 1}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_workers_continue_each_others_rungs(tmp_path: Path):
    """Hyperband: who goes on with a trial asks the chief how long it was trained before."""
    folder = tmp_path / "search"
    with Watched(folder, 2, trials=0, seconds=0.0, algorithm="hyperband"):
        pass
    chains = Counter(tuple(line["rungs"]) for line in lines(folder) if line["event"] == "measured")
    # ceil(1 + log3(9)) = 3 trials at the end of the last bracket; 3/3 * 9, 3/2 * 3, 3 at the start of each
    assert chains == {(1,): 9, (1, 3): 3, (1, 3, 9): 1, (3,): 5, (3, 9): 2, (9,): 3}
    assert all(r.status == "completed" for r in read_trials(folder, SPACE))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_processes_end_when_who_supervises_them_is_killed(tmp_path: Path):
    folder = tmp_path / "search"
    folder.mkdir()
    code = (
        "import sys; from pathlib import Path; from shortlist.components._workers import supervise; "
        f"supervise({command(folder, trials=50, seconds=1.0)!r}, 1, Path({str(folder / 'logs')!r}), lambda: 0)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code])
    try:
        end = time.time() + 60
        while not lines(folder):
            assert time.time() < end
            assert supervisor.poll() is None
            time.sleep(0.05)
        worker = int(str(lines(folder)[0]["pid"]))
        assert Path(f"/proc/{worker}").exists()
    finally:
        supervisor.kill()
        supervisor.wait()
    end = time.time() + 15
    while _runs(worker) and time.time() < end:
        time.sleep(0.05)
    assert not _runs(worker)
    before = (folder / "oracle.json").read_text()
    time.sleep(1.5)
    assert (folder / "oracle.json").read_text() == before


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_that_die_again_and_again_are_given_up(tmp_path: Path):
    code = f"import os, sys; os.environ[{_workers.TUNER_ID!r}] == 'chief' and __import__('time').sleep(60); "
    worker = [sys.executable, "-c", code + "print('loading'); print('no memory left', flush=True); sys.exit(3)"]
    began = time.time()
    with pytest.raises(ShortlistError) as error:
        _workers.supervise(worker, 2, tmp_path / "logs", lambda: 0)
    assert time.time() - began < 30
    assert str(error.value).startswith("`--workers` die again and again: worker")
    assert f"with exit code 3. See {tmp_path / 'logs' / 'worker'}" in str(error.value)
    assert str(error.value).endswith("Received: no memory left")
    logs = [(tmp_path / "logs" / f"worker{n}.log").read_text().count("no memory left") for n in (0, 1)]
    assert max(logs) == _workers.MOST_DEATHS
    assert not (tmp_path / "logs" / "chief.log").read_text()


def test_progress_forgives_a_death(tmp_path: Path):
    """A worker dies seven times, but each time something has been done; the eighth time it ends well."""
    count = tmp_path / "count"
    code = (
        f"import os, sys, time; os.environ[{_workers.TUNER_ID!r}] == 'chief' and time.sleep(60); "
        f"n = os.path.getsize({str(count)!r}) if os.path.exists({str(count)!r}) else 0; "
        f"open({str(count)!r}, 'a').write('x'); sys.exit(n < 7)"
    )
    _workers.supervise(
        [sys.executable, "-c", code], 1, tmp_path / "logs", lambda: count.exists() and count.stat().st_size
    )
    assert count.read_text() == "x" * 8


def test_a_process_without_the_variables_is_alone():
    assert _workers.role() is None
    assert not _workers.is_chief(None)


def test_all_variables_name_a_process(monkeypatch: pytest.MonkeyPatch):
    for name, text in ((_workers.IP, "10.0.0.1"), (_workers.PORT, "8000"), (_workers.TUNER_ID, "worker7")):
        monkeypatch.setenv(name, text)
    assert _workers.role() == "worker7"
    assert not _workers.is_chief("worker7")
    assert _workers.is_chief("chief")


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ([_workers.IP], f"{_workers.PORT}, {_workers.TUNER_ID}"),
        ([_workers.IP, _workers.PORT], _workers.TUNER_ID),
        ([_workers.TUNER_ID], f"{_workers.IP}, {_workers.PORT}"),
        ([_workers.PORT, _workers.TUNER_ID], _workers.IP),
    ],
)
def test_some_of_the_variables_are_refused(monkeypatch: pytest.MonkeyPatch, present: list[str], missing: str):
    for name in present:
        monkeypatch.setenv(name, "1")
    with pytest.raises(ShortlistError, match=f"belong together. Set {missing} too, or none of them."):
        _workers.role()
