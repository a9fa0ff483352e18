"""Training as a step: the trainer is named by its import path, so no component knows a model."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shortlist.components._cluster import TF_CONFIG, Cluster, ClusterConfig, read_cluster
from shortlist.components._config import Config
from shortlist.components._sources import digest
from shortlist.components._training import help_training, train_together
from shortlist.components.artifacts import Candidates, Encoded, Model
from shortlist.components.pipeline import Component, Node


class Trainer(Component):
    """Runs a trainer's `train(config, inputs, workdir)`.

    Args:
      config: the trainer's own configuration.
      name: of the step.
      run_fn: import path of the function, `package.module:function`.
      together: of a strategy that several processes share.
    """

    output = Model

    def __init__(self, config: Config, name: str, run_fn: str, together: ClusterConfig | None = None):
        super().__init__(config, name)
        self.run_fn, self.together = run_fn, together

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
        for base in (of or {}).values():
            base.refuse_unless_made_from(encoded)
        if start and earlier:
            start.refuse_unless_made_from(earlier)
        given = {"encoded": encoded, "candidates": candidates, "start": start, "earlier": earlier, "of": of}
        inputs = {name: value for name, value in given.items() if value is not None}
        cluster = self._cluster()
        if cluster is not None:
            train_together(self.run_fn, self.config, inputs, out, _backup(out), cluster)
            return
        module, _, function = self.run_fn.partition(":")
        getattr(importlib.import_module(module), function)(self.config, inputs, out)

    def _cluster(self) -> Cluster | None:
        return read_cluster(getattr(self.config, "strategy", "none"), self.together)

    def cluster(self) -> Cluster | None:
        return self._cluster() if os.environ.get(TF_CONFIG) else None

    def help(self, artifact: Model, there: Callable[[], bool], workdir: Path, inputs: dict[str, Any]) -> None:
        cluster = self._cluster()
        if cluster is not None:
            help_training(self.run_fn, self.config, inputs, _backup(artifact.uri), cluster, there, workdir)


def _backup(out: Path) -> Path:
    """Where an interrupted training goes on from, beside the artifact or what is to become it."""
    return out.with_name(f"{out.name.removesuffix('.partial')}.backup")
