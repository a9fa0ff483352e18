"""Whether the bundle works where it will be served: in a process that has TensorFlow, and no shortlist."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pydantic

from shortlist.components._config import Config
from shortlist.components._replay import one_line
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
    a reason against it, never an error of this step: `Pusher` refuses it.
    """

    output = InfraBlessing

    def __init__(self, config: InfraValidatorConfig | None = None, name: str = ""):
        self.config: InfraValidatorConfig = config or InfraValidatorConfig()
        super().__init__(self.config, name)

    def run(self, out: Path, bundle: Bundle) -> None:
        """See `InfraBlessing` for what is written."""
        started = time.time()
        reasons, requests = self._replay(bundle.uri)
        blessing = {
            "blessed": not reasons,
            "reasons": reasons,
            "requests": requests,
            "seconds": round(time.time() - started, 2),
        }
        (out / "blessing.json").write_text(json.dumps(blessing, indent=2))

    def _replay(self, bundle: Path) -> tuple[list[str], int]:
        environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
        environment.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
        modules = json.dumps([path for path in sys.path if path])
        command = [sys.executable, "-I", str(Path(__file__).with_name("_replay.py")), str(bundle.resolve()), modules]
        try:
            done = subprocess.run(
                command,
                env=environment,
                cwd=bundle,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.config.timeout,
            )
        except subprocess.TimeoutExpired:
            return [f"it did not answer within {self.config.timeout:g} seconds."], 0
        if done.returncode:
            last = one_line((done.stderr.strip().splitlines() or ["no message"])[-1])
            return [f"the process that loaded it ended with code {done.returncode}: {last}"], 0
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        return answer["reasons"], answer["requests"]
