"""Whether the bundle works where it will be served: in a process that has TensorFlow, and no shortlist."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydantic

from shortlist.components._config import Config
from shortlist.components._native import CannotCompile, replay_program
from shortlist.components._prediction_log import LIMIT, WARMUP
from shortlist.components._replay import SHOWN, one_line, read_records
from shortlist.components.artifacts import Bundle, InfraBlessing
from shortlist.components.pipeline import Component


class InfraValidatorConfig(Config):
    """Settings of `InfraValidator`.

    Args:
      timeout: seconds that loading and replaying may take.
    """

    timeout: float = pydantic.Field(600.0, gt=0)


class InfraValidator(Component):
    """Loads the bundle in a fresh process in which shortlist cannot be imported, and compares its answers.

    Blessed is a bundle whose files are those that were written, that has every signature, and that answers each
    recorded request as it did when it was made: text and counts exactly, scores to 1e-6 of their size. Anything else is
    a reason against it, never an error of this step: `Pusher` refuses it. Where there is a C compiler, a program of
    TensorFlow's C API must find the same; where there is none, a note says so.
    """

    output = InfraBlessing

    def __init__(self, config: InfraValidatorConfig | None = None, name: str = ""):
        self.config: InfraValidatorConfig = config or InfraValidatorConfig()
        super().__init__(self.config, name)

    def run(self, out: Path, bundle: Bundle) -> None:
        """See `InfraBlessing` for what is written."""
        started = time.time()
        requests, notes = 0, list[str]()
        reasons = read_records(bundle.uri)[1][:SHOWN]
        if not reasons:  # of files that are not those that were written nothing is loaded
            requests, notes, reasons = self._replays(bundle.uri)
        blessing = {
            "blessed": not reasons,
            "reasons": reasons,
            "notes": notes,
            "requests": requests,
            "seconds": round(time.time() - started, 2),
        }
        (out / "blessing.json").write_text(json.dumps(blessing, indent=2))

    def _replays(self, bundle: Path) -> tuple[int, list[str], list[str]]:
        """What `run` writes of both replays: requests, notes and reasons."""
        with ThreadPoolExecutor(1) as pool:  # each takes seconds to load it, on one core mostly
            in_c = pool.submit(self._run_in_c, bundle)
            reasons, requests = self._replay(bundle)
            if reasons:
                return requests, [], reasons
            try:
                reasons = _against(in_c.result(), requests)
            except CannotCompile as error:
                return requests, [f"Not replayed by a C program: {error}."], []
            return requests, [] if reasons else ["A program of TensorFlow's C API answered too."], reasons

    def _replay(self, bundle: Path) -> tuple[list[str], int]:
        modules = json.dumps([path for path in sys.path if path])
        program = str(Path(__file__).with_name("_replay.py"))
        done = self._run([sys.executable, "-I", program, str(bundle.resolve()), modules], bundle)
        if isinstance(done, str):
            return [done], 0
        if done.returncode:
            last = one_line((done.stderr.strip().splitlines() or ["no message"])[-1])
            return [f"the process that loaded it ended with code {done.returncode}: {last}"], 0
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        return answer["reasons"], answer["requests"]

    def _run_in_c(self, bundle: Path) -> "subprocess.CompletedProcess[str] | str":
        return self._run([str(replay_program()), str(bundle.resolve() / "saved_model")], bundle)

    def _run(self, command: list[str], bundle: Path) -> "subprocess.CompletedProcess[str] | str":
        environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
        environment.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
        try:
            return subprocess.run(
                command,
                env=environment,
                cwd=bundle,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.config.timeout,
            )
        except subprocess.TimeoutExpired:
            return f"it did not answer within {self.config.timeout:g} seconds."


def _against(done: "subprocess.CompletedProcess[str] | str", requests: int) -> list[str]:
    """What the C program has against the bundle, of which `requests` were recorded."""
    if isinstance(done, str):
        return [f"C program: {done}"]
    lines = done.stdout.strip().splitlines()
    if done.returncode in (1, 2) and lines:
        return [f"C program: {one_line(line)}" for line in (lines[:-1] if done.returncode == 1 else lines)]
    if done.returncode:
        return [f"the C program that loaded it ended with code {done.returncode}: {one_line(done.stderr[-300:])}"]
    expected = min(requests, LIMIT)
    return [] if lines == [str(expected)] else [f"C program: `{WARMUP}` does not hold the {expected} requests."]
