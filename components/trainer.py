"""Training as a step: the trainer is named by its import path, so no component knows a model."""

import importlib
from pathlib import Path
from typing import Any

from shortlist.components._config import Config
from shortlist.components._sources import digest
from shortlist.components.artifacts import Candidates, Encoded, Model
from shortlist.components.pipeline import Component, Node


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

    @classmethod
    def step_of(cls, name: str) -> Node:
        """The step of this name."""
        return Node(f"{cls.__name__}.{name}", cls.output)

    def modules(self) -> list[str]:
        return [*super().modules(), self.run_fn.partition(":")[0]]

    def external(self) -> Any:
        """The digests of the files that the configuration names."""
        config = {} if self.config is None else dict(self.config)
        return {name: digest(value, name) for name, value in config.items() if isinstance(value, Path)} or None

    def run(
        self,
        out: Path,
        encoded: Encoded,
        candidates: Candidates | None = None,
        start: Model | None = None,
        earlier: Encoded | None = None,
        of: dict[str, Model] | None = None,
    ) -> None:
        """See `Model` for what is written. `start` is a model to go on with, of the same trainer with fewer epochs, or
        with `earlier`, which it was made from, one whose tables are to be taken over by their ids; `of` are those that
        the one to train builds on, by name.

        Raises:
          ShortlistError: if one of these was not made from `encoded`, or `start` from `earlier`, and whatever the
            trainer refuses.
        """
        module, _, function = self.run_fn.partition(":")
        for base in (of or {}).values():
            base.refuse_unless_made_from(encoded)
        if start and earlier:
            start.refuse_unless_made_from(earlier)
        given = {"encoded": encoded, "candidates": candidates, "start": start, "earlier": earlier, "of": of}
        inputs = {name: value for name, value in given.items() if value is not None}
        getattr(importlib.import_module(module), function)(self.config, inputs, out)
