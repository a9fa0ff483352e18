"""A new version of a run's bundle for the catalogue of today, and the users as they are now, without training."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shortlist import ShortlistError
from shortlist.components._ann import IndexConfig
from shortlist.components._config import parse
from shortlist.components._engine import engine_of
from shortlist.components._files import replace_file
from shortlist.components.artifacts import LINEAGE, Artifact, Bundle, Encoded, Index, Model, ModelEvaluation, Splits
from shortlist.components.exporter import Exporter, ExporterConfig
from shortlist.components.infra_validator import InfraValidator
from shortlist.components.pipeline import Node, Pipeline
from shortlist.components.pusher import Pusher, versions
from shortlist.components.refresh_gen import RefreshConfig, RefreshGen
from shortlist.components.retrieval_index import RetrievalIndex
from shortlist.components.trainer import Trainer
from shortlist.components.transform import Transform, TransformConfig
from shortlist.trainers.two_stage import TwoStage, config_class

STEP = "refresh"
RECORD = "refreshed.json"
OF_DATA = ("fresh", "neighbours", "popularity", "post_filter", "similar_users", "table")
"""Models that are no more than what their trainer copies or counts: it makes them anew, of the same training part."""


@dataclass(frozen=True)
class Run:
    """A finished run with a bundle, and what has been refreshed of it.

    Attributes:
      settings: its own.
      lineage: of its steps, by name.
    """

    settings: TwoStage
    lineage: dict[str, Any]

    def artifact(self, step: str, cls: type[Artifact]) -> Any:
        """What a step of the run made.

        Raises:
          ShortlistError: if there is no such step, or its artifact is gone.
        """
        if step not in self.lineage:
            raise ShortlistError(
                "`run` must hold a bundle: one of `shortlist run`, not `shortlist train`. "
                f"Received: {self.settings.workdir}."
            )
        return self._found(step, self.lineage[step]["fingerprint"], cls)

    def _found(self, step: str, fingerprint: str, cls: type[Artifact]) -> Any:
        artifact = cls(self.settings.workdir / "artifacts" / step / fingerprint[:16], fingerprint)
        if not (artifact / LINEAGE).exists():
            raise ShortlistError(
                f"`run` must be whole. Received: {self.settings.workdir}, whose artifacts are gone. Run it again."
            )
        return artifact

    @property
    def home(self) -> Path:
        """The folder of the pushed versions."""
        push = self.settings.push
        return (push.destination or self.settings.workdir / "pushed") / push.name

    @cached_property
    def refreshed(self) -> list[dict[str, Any]]:
        """The refreshes of the run as it is: `{"version", "bundle": fingerprint of the run's, "steps": {step:
        fingerprint}}`, the oldest first."""
        file = self.settings.workdir / RECORD
        try:
            every = json.loads(file.read_text("utf-8")) if file.exists() else []
            return [e for e in every if e["bundle"] == self.lineage["Exporter"]["fingerprint"]]
        except (OSError, ValueError, KeyError, TypeError):
            raise ShortlistError(
                f"`{file}` must be a list of refreshes, as they are written down. Remove it: the next refresh begins "
                "from the run then, without the interactions of the ones before."
            ) from None

    @property
    def newest(self) -> dict[str, Any] | None:
        """The refresh that is served: the one of the highest version that is there, if no run was pushed after it."""
        there = versions(self.home) if self.home.is_dir() else {}
        found = [entry for entry in self.refreshed if entry["version"] in there]
        return found[-1] if found and found[-1]["version"] > self.pushed.get("version", 0) else None

    @cached_property
    def pushed(self) -> dict[str, Any]:
        """`pushed.json` of the run, where anything was pushed."""
        pushed = self.artifact("Pusher", Artifact).read_json("pushed.json")
        return pushed if pushed["pushed"] else {}

    def latest(self, step: str, cls: type[Artifact], of_run: str = "") -> Any:
        """What a step of the served refresh made; the run's own (`of_run`) where it is the run that is served."""
        entry = self.newest
        if entry is None:
            return self.artifact(of_run, cls) if of_run else None
        return self._found(step, entry["steps"][step], cls)

    def write_down(self, version: int, steps: dict[str, str]) -> None:
        """Adds a refresh."""
        entry = {"version": version, "bundle": self.lineage["Exporter"]["fingerprint"], "steps": steps}
        others = [e for e in self.refreshed if e["version"] != version]
        ordered = sorted([*others, entry], key=lambda e: e["version"])
        replace_file(self.settings.workdir / RECORD, json.dumps(ordered, indent=2))


def refresh(run: Run, config: RefreshConfig) -> Pipeline:
    """Builds the pipeline; `run()` runs it.

    It begins with the trained run, whatever was refreshed before: of the refresh that is served it has the new
    interactions alone. The evaluation is that of the run, whose sources and ranker are served on.

    Raises:
      ShortlistError: if the run has no bundle, or is no longer whole.
    """
    p = Pipeline(run.settings.workdir, engine=engine_of(run.settings.engine))
    bundle, evaluation = run.artifact("Exporter", Bundle), run.artifact("Evaluator", ModelEvaluation)
    made = bundle.parents
    before: Encoded = made["encoded"]
    splits, base = p.given("run.splits", before.parents["splits"]), p.given("run.encoded", before)
    earlier = _earlier(run, config)
    further = None if earlier is None else p.given("refresh.before", earlier)
    catalogue = p.add(RefreshGen(config), splits, base, further)
    transform = parse(TransformConfig, before.lineage["config"], "the run's Transform")
    encoded = p.add(Transform(transform, STEP), catalogue)
    sources = {}
    for key, index in made.items():
        if isinstance(index, Index):
            model = _model(p, index.parents["model"], base, encoded)
            name = key.removeprefix("sources.")
            settings = parse(IndexConfig, index.lineage["config"], f"the run's index of {name}")
            sources[name] = p.add(RetrievalIndex(f"{STEP}.{name}", settings), model, encoded)
    candidates, ranker = (p.given(f"run.{name}", made[name]) for name in ("candidates", "ranker"))
    exporter = Exporter(parse(ExporterConfig, bundle.lineage["config"], "the run's Exporter"), STEP)
    exported = p.add(exporter, encoded, sources, candidates, ranker)
    infra = p.add(InfraValidator(name=STEP), exported)
    p.add(Pusher(run.settings.push, STEP), p.given("run.evaluation", evaluation), infra, exported)
    return p


def _earlier(run: Run, config: RefreshConfig) -> Splits | None:
    """The interactions that the served refresh added to the run's; those before it, if it was of the same files."""
    served: Splits | None = run.latest("RefreshGen", Splits)
    if served is None:
        return None
    same = RefreshGen(config)
    if (served.lineage["config"], served.lineage["external"]) == (config.model_dump(mode="json"), same.external()):
        return served.parents.get("earlier")
    return served


def _model(p: Pipeline, model: Model, base: Node, encoded: Node) -> Node:
    """A retriever of the run, and what it builds on, for today's catalogue."""
    step = f"{STEP}.{model.lineage['component'].removeprefix('Trainer.')}"
    known = Trainer.step_of(step)
    if known.step in p.steps:
        return known
    name = model.read_json("model.json")["model"]
    config = parse(config_class(name), model.lineage["config"], f"the run's {name}")
    of = {
        key.removeprefix("of."): _model(p, of, base, encoded) for key, of in model.parents.items() if key[:3] == "of."
    }
    if name in OF_DATA:
        return p.add(Trainer(config, step, f"shortlist.trainers.{name}:train"), encoded, of=of or None)
    start = p.given(f"run.{step}", model)
    trainer = Trainer(config, step, "shortlist.trainers._grown:grow")
    return p.add(trainer, encoded, start=start, earlier=base, of=of or None)
