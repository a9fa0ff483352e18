"""Training as a step: the trainer is named by its import path, so no component knows a model."""

import importlib
from pathlib import Path

from shortlist.components._config import Config
from shortlist.components.artifacts import Artifact, Candidates, Encoded, Model
from shortlist.components.pipeline import Component


class Trainer(Component):
    """Runs a trainer's `train(config, inputs, workdir)`.

    Args:
      config: the trainer's own configuration.
      name: of the step.
      run_fn: import path of the function, `package.module:function`.
    """

    output = Model

    def __init__(self, config: Config, name: str, run_fn: str):
        super().__init__(config, name)
        self.run_fn = run_fn

    def modules(self) -> list[str]:
        return [*super().modules(), self.run_fn.partition(":")[0]]

    def run(
        self, out: Path, encoded: Encoded, candidates: Candidates | None = None, start: Model | None = None
    ) -> None:
        """See `Model` for what is written. `start` is a model to go on with, of the same trainer with fewer epochs."""
        module, _, function = self.run_fn.partition(":")
        inputs: dict[str, Artifact] = {"encoded": encoded}
        inputs |= {name: given for name, given in (("candidates", candidates), ("start", start)) if given is not None}
        getattr(importlib.import_module(module), function)(self.config, inputs, out)
