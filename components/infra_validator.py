"""Whether the bundle works where it will be served: in a process that has TensorFlow, and no shortlist."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pydantic

from shortlist.components._config import Config
from shortlist.components._native import CannotCompile, replay_program
from shortlist.components._prediction_log import LIMIT, WARMUP
from shortlist.components._replay import one_line
from shortlist.components.artifacts import Bundle, InfraBlessing
from shortlist.components.pipeline import Component


class InfraValidatorConfig(Config):
    """Settings of `InfraValidator`.

    Args:
      timeout: seconds that loading and replaying may take, of either process.
    """

    timeout: float = pydantic.Field(600.0, gt=0)


class InfraValidator(Component):
    """Loads the bundle in a fresh process that can import neither shortlist nor Keras, and compares its answers.

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
        try:
            program = str(replay_program())
        except CannotCompile as error:
            reasons, requests = self._replay(bundle)
            return requests, [] if reasons else [f"Not replayed by a C program: {error}."], reasons
        # Beside each other, since each takes seconds to load it, on one core mostly. Where the first has something
        # against the bundle, as of files that are not those that were written, the other is not waited for.
        with _begun([program, str(bundle.resolve() / "saved_model")], bundle) as in_c:
            reasons, requests = self._replay(bundle)
            if not reasons:
                reasons = _against(self._ended(in_c), requests)
        return requests, [] if reasons else ["A program of TensorFlow's C API answered too."], reasons

    def _replay(self, bundle: Path) -> tuple[list[str], int]:
        modules = json.dumps([path for path in sys.path if path])
        program = str(Path(__file__).with_name("_replay.py"))
        with _begun([sys.executable, "-I", program, str(bundle.resolve()), modules], bundle) as process:
            done = self._ended(process)
        if isinstance(done, str):
            return [done], 0
        if done.returncode:
            last = one_line((done.stderr.strip().splitlines() or ["no message"])[-1])
            return [f"the process that loaded it ended with code {done.returncode}: {last}"], 0
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        return answer["reasons"], answer["requests"]

    def _ended(self, process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str] | str":
        try:
            said = process.communicate(timeout=self.config.timeout)
        except subprocess.TimeoutExpired:
            return f"it did not answer within {self.config.timeout:g} seconds."
        return subprocess.CompletedProcess(process.args, process.returncode, *said)


@contextlib.contextmanager
def _begun(command: list[str], bundle: Path) -> "Iterator[subprocess.Popen[str]]":
    """A process over a bundle, which ends with what is done within."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    environment.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, cwd=bundle, stdout=pipe, stderr=pipe, text=True, errors="replace"
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # of one that has ended it is nothing


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
