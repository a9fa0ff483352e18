"""Reporter: what a person sees of a run, as one page with plots, a model card, and pictures of the main plots."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydantic

from shortlist.components._config import Config
from shortlist.components._first_stage import ShortlistConfig, load_index
from shortlist.components._model_card import write_model_card
from shortlist.components._queries import EncodedData, Queries, build_queries
from shortlist.components._report import best_system
from shortlist.components._report_data import (
    SHOWN,
    contributions,
    examples,
    history_of,
    item_map,
    lengths,
    recall_curves,
)
from shortlist.components._second_stage import by_odds, read_shortlists, score_shortlists
from shortlist.components.artifacts import (
    Anomalies,
    Artifact,
    Candidates,
    Encoded,
    Index,
    Model,
    ModelEvaluation,
    Report,
    Statistics,
)
from shortlist.components.evaluator import TWO_STAGE, UNION, best_items
from shortlist.components.pipeline import Component

DEPTH = 300
"""How far the lists of sources are followed where there is no shortlist."""


class ReporterConfig(Config):
    """What is shown.

    Args:
      examples: users, drawn at random, whose recommendations are shown.
      map_items: the most watched items, which the map shows.
      seed: of that draw, and of the bootstrap along the shortlist.
    """

    examples: int = pydantic.Field(10, ge=0, le=1000)
    map_items: int = pydantic.Field(1500, ge=0, le=20_000)
    seed: int = pydantic.Field(0, ge=0)


class Reporter(Component):
    """Writes the report of a run, of both stages or of retrieval alone, on the split that the evaluation is about.

    Example:
      >>> pipeline.add(Reporter(), statistics, anomalies, encoded, baselines, sources, evaluation, candidates, ranker)
    """

    output = Report
    config: ReporterConfig

    def __init__(self, config: ReporterConfig | None = None, name: str = ""):
        super().__init__(config or ReporterConfig(), name)

    def run(
        self,
        out: Path,
        statistics: Statistics,
        anomalies: Anomalies,
        encoded: Encoded,
        baselines: dict[str, Index],
        sources: dict[str, Index],
        evaluation: ModelEvaluation,
        candidates: Candidates | None = None,
        ranker: Model | None = None,
    ) -> None:
        """See `Report` for what is written.

        Raises:
          ShortlistError: if the evaluation is one of other artifacts.
        """
        from shortlist.components._plots import page, png
        from shortlist.components._report_page import Run, sections_of

        given: list[Artifact] = [encoded, *baselines.values(), *sources.values()]
        given += [artifact for artifact in (candidates, ranker) if artifact is not None]
        evaluation.refuse_unless_made_from(*given)
        data, metrics = EncodedData(encoded), evaluation.read_json("metrics.json")
        queries = build_queries(data, metrics["split"])
        table = read_shortlists(candidates, queries.split) if candidates else None
        quota = dict.fromkeys(sources, DEPTH)
        if candidates:
            quota = ShortlistConfig(**candidates.read_json("candidates.json")["shortlist"]).quotas(sources)
        catalogue = data.num_items - 2
        size = min(catalogue, DEPTH if table is None else table["items"].shape[1])
        depth = min(catalogue, max(size, *quota.values()))

        lists: dict[str, np.ndarray] = {}
        vectors, named = None, ""
        for name, index in sources.items():
            loaded = load_index(index)
            lists[name] = best_items(loaded, queries, depth, name)
            if vectors is None and hasattr(loaded, "item_vectors"):
                vectors, named = loaded.item_vectors().numpy(), name
        chosen = self._draw(queries)
        asked = np.diff(queries.history.offsets)[chosen, np.newaxis] > 0 if candidates else True  # else: popularity
        proposed = {name: np.where(asked, ranked[chosen, : quota[name]], 0) for name, ranked in lists.items()}
        if table is None:
            system = best_system(metrics, list(sources))
            ranked = lists[system][chosen]
        else:
            lists[UNION] = table["items"]
            own = {key: values[chosen] for key, values in table.items()}
            system, ranked = UNION, own["items"]
            if ranker is not None:
                scores = score_shortlists(ranker, {queries.split: own})[queries.split]
                system, ranked = TWO_STAGE, by_odds(ranked, scores["odds"])
        mapped = None if vectors is None else item_map(data, vectors, self.config.map_items)
        models = {**baselines, **sources, **({} if ranker is None else {"ranker": ranker})}
        splits, source = encoded.read_json("splits.json"), encoded.read_json("source.json")
        added = contributions(lists, queries, size, self.config.seed, UNION) if len(sources) > 1 else []
        shown = {
            "contributions": added,
            "slices": pq.read_table(evaluation / "slices.parquet").to_pylist(),
            "anomalies": anomalies.read_json("anomalies.json"),
            "steps": history_of([statistics, anomalies, *given, evaluation]),
        }
        run = Run(
            metrics,
            source=source,
            splits=splits,
            statistics=statistics.read_json("statistics.json"),
            histories={name: model.read_json("model.json").get("history", {}) for name, model in models.items()},
            curves=recall_curves(lists, queries, lengths(size), self.config.seed),
            examples=examples(data, queries, chosen, ranked[:, :SHOWN], proposed, vectors),
            system=system,
            map=None if mapped is None else (*mapped, named),
            positives=_positives(candidates, queries.split),
            **shown,
        )
        sections, plots = sections_of(run)
        (out / "report.html").write_text(page(run.title, sections), "utf-8")
        write_model_card(out / "report.md", metrics, source, splits, models=list(sources), size=size, **shown)
        (out / "plots").mkdir()
        for name, plot in plots.items():
            png(plot.chart, out / "plots" / f"{name}.png")

    def _draw(self, queries: Queries) -> np.ndarray:
        """The queries to show, in the order of the users."""
        draw = np.random.default_rng(self.config.seed)
        return np.sort(draw.permutation(len(queries))[: self.config.examples])


def _positives(candidates: Candidates | None, split: str) -> dict[str, float]:
    """The mean number of positives in a shortlist of `rank_train` and of the split."""
    found: dict[str, float] = {}
    if candidates is None:
        return found
    for name in dict.fromkeys(("rank_train", split)):
        with np.load(candidates / f"{name}.npz") as table:
            found[name] = float(table["label"].sum() / max(len(table["user_key"]), 1))
    return found
