"""A run that is killed, again and again, ends with the same figures as one that is left alone."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import small_run

KILLED = (
    "Splitter",
    "Trainer.wals",
    "Trainer.two_tower",
    "CandidateGenerator",
    "Trainer.weighted_logistic",
    "Exporter",
    "Pusher",
)
QUICK = {"Splitter", "Pusher"}  # over in milliseconds: the signal may come after them


def kill_in(step: str, arguments: list[str], workdir: Path, log: Path) -> None:
    """Starts the command and kills it without warning as soon as `step` has begun to write."""
    folder = workdir / "artifacts" / step
    with log.open("a") as output:
        process = subprocess.Popen(
            small_run.command(*arguments), stdout=output, stderr=output, env=small_run.environment()
        )
        try:
            deadline = time.monotonic() + 120
            while not (folder.is_dir() and os.listdir(folder)):
                assert process.poll() is None, f"It ended by itself before {step}: {log.read_text()}"
                assert time.monotonic() < deadline, f"It did not come to {step}: {log.read_text()}"
                time.sleep(0.0005)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL
    left = [path.name for path in folder.iterdir()]
    assert len(left) == 1
    assert step in QUICK or left[0].endswith(".partial")


def numbers(value: object, path: str = "") -> dict[str, object]:
    """Every leaf of `metrics.json` by its path."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in numbers(inner, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for place, inner in enumerate(value) for k, v in numbers(inner, f"{path}/{place}").items()}
    return {path: value}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_in_seven_steps_ends_like_one_that_is_not(tmp_path, tmp_path_factory):
    """It is another folder with the same seed as well, so this is also that a seed decides the figures."""
    home = small_run.finished(tmp_path_factory)
    workdir, log = tmp_path / "run", tmp_path / "log"
    arguments = small_run.run_arguments(home, workdir)
    for step in KILLED:
        kill_in(step, arguments, workdir, log)
        assert not (workdir / "run.json").exists()
        assert not list(workdir.glob("pushed/shortlist/.partial/saved_model.pb")) or step == "Pusher"

    done = subprocess.run(
        small_run.command(*arguments), capture_output=True, text=True, env=small_run.environment(), timeout=120
    )
    assert done.returncode == 0, done.stderr
    ran = small_run.steps(done.stderr)
    assert len(ran) == small_run.STEPS
    assert not any(did for name, did in ran.items() if name != "Pusher")  # all but the last were finished before
    assert not list(workdir.rglob("*.partial"))

    expected = numbers(json.loads((home / "run" / "metrics.json").read_text()))
    found = numbers(json.loads((workdir / "metrics.json").read_text()))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        close = found[path] == (pytest.approx(value, rel=0, abs=1e-6) if isinstance(value, float) else value)
        assert close, f"{path}: {found[path]} instead of {value}"
    assert steps_of(workdir) == steps_of(home / "run")

    versions = [path for path in (workdir / "pushed" / "shortlist").iterdir() if path.name.isdigit()]
    assert versions
    bundle = next(workdir.glob("artifacts/Exporter/*/saved_model"))
    files = {path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file()}
    for version in versions:  # one, or two where the signal came between the push and its record
        assert {path.relative_to(version) for path in version.rglob("*") if path.is_file()} == files
        assert all((version / file).read_bytes() == (bundle / file).read_bytes() for file in files)


def steps_of(workdir: Path) -> dict[str, str]:
    """The fingerprint of each step: that of its code, settings and inputs, not of the folder."""
    lineage = json.loads((workdir / "lineage.json").read_text())
    return {name: step["fingerprint"] for name, step in lineage.items()}
