"""Artifacts: what components hand each other. Each is one folder; its docstring is the layout on disk.

Every folder also holds `lineage.json`: the component, its configuration, the fingerprints of its inputs, the versions
of the libraries and the seconds it took. A folder without it is not an artifact: `Pipeline` writes into a temporary
folder, puts `lineage.json` there last and renames, so nothing half-written ever looks whole.

Ids are strings in `Examples` and `Splits`, and int32 rows (0 padding, 1 out of vocabulary) from `Encoded` on.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from shortlist import ShortlistError

LINEAGE = "lineage.json"
NEW = "new"
"""The part of the interactions that came after a run was split, and that nothing was fitted on."""


@dataclass(frozen=True)
class Artifact:
    """A folder at `uri`, identified by the `fingerprint` of everything that it was made from."""

    uri: Path
    fingerprint: str
    type: ClassVar[str] = "Artifact"
    NAMES: ClassVar[tuple[str, ...]] = ()
    """Of an artifact in parts, those that there can be."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parts that are there: a sweep leaves `test` out."""
        return tuple(name for name in self.NAMES if any(self.uri.glob(f"{name}.*")))

    def __truediv__(self, name: str) -> Path:
        """The path of a file of this artifact."""
        return self.uri / name

    @cached_property
    def lineage(self) -> dict[str, Any]:
        return json.loads((self.uri / LINEAGE).read_text())

    @cached_property
    def parents(self) -> dict[str, Any]:
        """The artifacts that it was made from, by the name of the input.

        Raises:
          ShortlistError: if one of them is gone.
        """
        found = {}
        for name, made in self.lineage["inputs"].items():
            cls = next(c for c in Artifact.__subclasses__() if c.type == made["type"])
            found[name] = cls(self.uri.parents[2] / made["uri"], made["fingerprint"])
            if not (found[name] / LINEAGE).exists():
                raise ShortlistError(
                    f"`run` must be whole: `{self.uri.name}` ({self.type}) was made from an artifact that is gone. Run "
                    f"`shortlist run` on its folder again. Received: {found[name].uri}."
                )
        return found

    def read_json(self, name: str) -> Any:
        return json.loads((self.uri / name).read_text())

    def refuse_unless_made_from(self, *parents: "Artifact") -> None:
        """Refuses to be combined with an artifact that it was not made from.

        Raises:
          ShortlistError: naming both artifacts.
        """
        made_from = {made["fingerprint"] for made in self.lineage["inputs"].values()}
        for parent in parents:
            if parent.fingerprint not in made_from:
                raise ShortlistError(
                    f"`{self.uri.name}` ({self.type}) was not made from `{parent.uri.name}` ({parent.type}): they "
                    "belong to different models. Run the pipeline again, so that both come from the same step. "
                    f"Received: fingerprint {parent.fingerprint[:16]}."
                )


@dataclass(frozen=True)
class Examples(Artifact):
    """Raw tables, as the source has them.

    - `interactions.parquet`: user string, item string, timestamp int64 seconds or null, event string ("watch" or
      "impression"), rating float32 or null, watch_time float32 seconds or null, query string or null, `context_*`
      string, any further columns. In the order of the source.
    - `items.parquet`: item string (unique), title string or null, year int16 or null, added int64 or null, genres
      list<string>, any further columns. Every item of the interactions has a row.
    - `users.parquet`: user string (unique), any columns. Every user of the interactions has a row.
    - `source.json`: `{"source", "name", "licence", "citation", "homepage", "rows", "duplicates_dropped"}`.
    """

    type: ClassVar[str] = "Examples"


@dataclass(frozen=True)
class Statistics(Artifact):
    """`statistics.json`: for each table its number of rows and for each column type, nulls, distinct values, minimum,
    maximum, mean, standard deviation, quantiles and most frequent values; and the shape of the interaction matrix."""

    type: ClassVar[str] = "Statistics"


@dataclass(frozen=True)
class Schema(Artifact):
    """`interactions.pbtxt`, `items.pbtxt`, `users.pbtxt`: a `tensorflow_metadata` Schema a table, as text."""

    type: ClassVar[str] = "Schema"


@dataclass(frozen=True)
class Anomalies(Artifact):
    """`anomalies.json`: a list of `{"table", "column", "severity": "error" | "warning", "rows", "message"}`."""

    type: ClassVar[str] = "Anomalies"


@dataclass(frozen=True)
class Splits(Artifact):
    """Interactions cut in parts that follow each other in time for every user.

    - `train.parquet`, `fold_in.parquet`, `rank_train.parquet`, `validation.parquet`, `test.parquet`: the columns of
      `Examples`' interactions; sorted by user, then timestamp, ties by a seeded hash of (user, item). `fold_in` holds
      the rows of held-out users that only serve as history (`strong`); it is empty for the other strategies. A sweep
      has no `test` (`split.keep_test`).
    - `items.parquet`, `users.parquet`, `source.json`: as in `Examples`.
    - `context_splits.parquet`, from `ContextSplitter`: a row a split: side string ("item" or "user"), id string,
      condition list<{dimension, condition}> (all must hold), statistic and p float64, n_in and n_out int64, id_in and
      id_out string. The parts, the items and the users have the new ids; context is kept.
    - `splits.json`: `{"strategy", "seed", "positive_threshold", "rows": {split: n}, "users": {split: n},
      "guarantee": one sentence on what the strategy promises}`.
    - From `RefreshGen`, the parts of an earlier run with a catalogue of today: `new.parquet`, interactions since then;
      `items.parquet` has the removed items too and a further column `listed` bool; `fitted_items.parquet`, the items as
      they were, which vocabularies are fitted on; `refresh.json`: `{"items", "added", "removed", "changed",
      "interactions", "users", "new_users", "unknown_items"}`, numbers.
    """

    type: ClassVar[str] = "Splits"
    NAMES: ClassVar[tuple[str, ...]] = ("train", "fold_in", "rank_train", "validation", "test")


@dataclass(frozen=True)
class Encoded(Artifact):
    """The splits with ids as int32 rows, and the state that maps them, fitted on `train` alone (or on all parts).

    - `train.parquet` … `test.parquet`: user_key int32 (the row of `users.parquet`, defined for every user), user int32
      (row of the model's tables, 1 when not in the vocabulary), item int32, timestamp int64, rating float32,
      watch_time float32 (null as NaN), positive bool, watched bool (false for an impression without a watch),
      `context_<dimension>` int32 (0 missing or unknown), query int32 (row of `searches.npy`, where there are any);
      sorted as in `Splits`, `user_key` in the place of the user. A row group ends where a user does, so that a trainer
      can read users without their neighbours.
    - `items.parquet`: one row an item row, the two reserved ones included: id string, title string, year int16 and
      added int64 (0 if unknown), genres list<int32> (rows of the genre vocabulary), `category_<column>` int32 (0
      missing, 1 unknown), `number_<column>` float32 (null as NaN), listed bool, whether it may be returned.
    - `users.parquet`: one row a `user_key`: id string, user int32, `user_<column>` int32 (of the items' vocabulary
      where they have the column) or float32.
    - `searches.npy`: int32 `[N, T]`, the words of each text that is searched for, in the order of the texts, row 0 for
      none.
    - `state.json`: `{"fitted_on", "items", "users", "genres": [...], "positive_threshold", "time": {"min", "max"},
      "year_boundaries", "request": what a query says besides (see `RequestColumns`), ...}`; `items.txt`, `users.txt`,
      `genres.txt`, `category_<column>.txt`, `user_<column>.txt`, `context_<dimension>.txt`, `query.txt`: the
      vocabularies, line n is row n + 2.
    - `splits.json`, `source.json`: as in `Splits`.
    - `new.parquet`, after a refresh: interactions that nothing was fitted on. New items and users stand behind the
      fitted ones in the vocabularies.
    """

    type: ClassVar[str] = "Encoded"
    NAMES: ClassVar[tuple[str, ...]] = Splits.NAMES

    @property
    def known(self) -> tuple[str, ...]:
        """All parts: those of `names`, and what came after them."""
        return (*self.names, *(name for name in (NEW,) if (self / f"{name}.parquet").exists()))


@dataclass(frozen=True)
class Model(Artifact):
    """A trained model.

    - `model.keras`: the model with its constructor's arguments; needs shortlist to load.
    - `serving/`: a SavedModel of its functions on encoded tensors; needs nothing but TensorFlow. A retriever has
      `score_items(query)` and, when its score is a dot product, `embed_query(query)` and `item_vectors()`; WALS also
      `fold_in_history(history, weights)`, `explain_history(history, item)` and `user_vectors()`; a ranker has
      `score(features, items, history)` → `odds`, `watch` and `expected`.
    - `items.txt`: of a ranker with a table of items, its own vocabulary of them.
    - `context_splits.parquet`: of a rating model whose users or items are split by context, a row a split: side, id and
      condition (`<dimension>=<condition>`, joined by " & ") string, statistic and p float64, n_in and n_out int64.
    - `model.json`: `{"model", "config", "trained_on": [splits], "history": {metric: [value an epoch]}, "notes": [..]}`.
    - `logs/`: TensorBoard.
    """

    type: ClassVar[str] = "Model"


@dataclass(frozen=True)
class Index(Artifact):
    """`model.json`, that of the `Model`, and `index/`, a SavedModel that answers for one retriever over all items.

    `scores(query)` float32 `[B, I]`; `retrieve(query, exclude [B, E], k)` item ids string `[B, k]` and scores. A
    factorized model is held as TFRS `BruteForce`, and `item_vectors()` returns its float32 `[I, D]`. Of such a model
    also `ann.faiss`, an approximate index, if one is asked for, and `ann.json`: `{"config", "recall", "k", "queries",
    "milliseconds", "exact_milliseconds", "megabytes"}`, what it finds of the exact answers, and what both cost a query.
    """

    type: ClassVar[str] = "Index"


@dataclass(frozen=True)
class Candidates(Artifact):
    """The shortlist of every query of three splits, with the features that the ranker sees.

    - `rank_train.npz`, `validation.npz`, `test.npz`: `user_key` int32 `[Q]`, `items` int32 `[Q, K]` (0 = none left),
      `fused` float32 `[Q, K]`, `features` float32 `[Q, K, F]`, `label` bool `[Q, K]`, `weight` float32 `[Q, K]` (what
      a positive weighs, 0 elsewhere), `history` int32 `[Q, L]` (the last items watched).
    - `rank_train.shown.npz` …, of a log with impressions: of every user with a row there, `user_key` int32 `[Q]` and
      `history` `[Q, L]`; of every row, `owner` int32 `[N]` (its place in these), `item` int32, `features` float32
      `[N, F]`, `watched` bool, `weight` float32 and `time` int64 `[N]`.
    - `candidates.json`: `{"feature_names", "sources", "shortlist": its settings, "weight_from", "positives": {split:
      n}, "not_retrieved": {split: n}}`.
    """

    type: ClassVar[str] = "Candidates"
    NAMES: ClassVar[tuple[str, ...]] = ("rank_train", "validation", "test")


@dataclass(frozen=True)
class ModelEvaluation(Artifact):
    """What was measured.

    - `metrics.json`: `{"data", "split", "seed", "blessed", "reasons", "systems": {name: {"ndcg@10": {"value", "low",
      "high", "users"}, …, "coverage@10": {"value"}, "gini@10": {"value"}}}, "comparisons": […], "protocol": {…}}`, and
      where there is a ranker `"shortlist": {"weight_from", "expected_watch_time": {"unit": seconds} | null,
      "learned_from_shown", "impressions", "positives", "log_loss", "systems": {"union" | "two_stage": {"auc":
      {"value"}, "watch_time_lost": {"value"}, "user_auc": {…}, "weighted_user_loss": {…}}}, "calibration": {column:
      [value a decile]}}`, of the candidates; of a log with impressions also `"impressions"`, the same of what was
      shown, with the number of its `"users"`. A metric that no user has is absent. With `evaluation.groups` also
      `"folding": {"groups", "least": {system: {"untouched_least@10": …}}, "overlap": {source: {"value", "chance"}}}`.
    - `blessing.json`: `{"blessed", "reasons", "comparisons": [{"split", "metric", "system", "against", "difference",
      "low", "high", "p", "p_holm", "users"}]}`; `p_holm` is corrected for the comparisons of the same split.
    - `per_user.parquet`: user string, system string, and a column a metric, NaN where a user or system has none.
    - `slices.parquet`: slice string ("activity", "cold_user", "item_popularity", "cold_item", "genre", "item.decade",
      `user.<column>`, `item.<column>`, `context_<dimension>`), part string, system string, metric string, value, low,
      high float64, users int64. An empty slice has no row. See `_slices.py`.
    """

    type: ClassVar[str] = "ModelEvaluation"


@dataclass(frozen=True)
class Bundle(Artifact):
    """What is served.

    - `saved_model/`: the two stages as one SavedModel with string ids; needs nothing but TensorFlow. Its
      `assets.extra/tf_serving_warmup_requests` holds the requests below and their answers as TF Serving logs them;
      `assets.extra/catalogue.parquet` the items as people know them, for `shortlist serve`: item and title string, year
      int32 (0 unknown), genres list<string>, in the order of the rows, with what a request may say in its metadata.
    - `requests.json`: `{"files": {path: {"bytes", "sha256"}}, "signatures": [..], "types": {signature: {input: type}},
      "requests": [{"signature_name", "inputs", "outputs"}]}`: the other files, and requests by columns with the answers
      when it was made.
    - `signatures.md`: its interface in words.
    """

    type: ClassVar[str] = "Bundle"


@dataclass(frozen=True)
class InfraBlessing(Artifact):
    """`blessing.json`: `{"blessed": bool, "reasons": [..], "notes": [..], "requests": n, "seconds": s}`."""

    type: ClassVar[str] = "InfraBlessing"


@dataclass(frozen=True)
class PushedModel(Artifact):
    """`pushed.json`: `{"pushed": bool, "reasons": [..], "path", "version"}`; once pushed also `"forced": bool` (against
    the evaluation) and `"serve"`, the commands that serve it. The model itself lies at `path`, and beside it TF
    Serving's configurations, a compose file, a client and `signatures.md`."""

    type: ClassVar[str] = "PushedModel"


@dataclass(frozen=True)
class Report(Artifact):
    """`report.html`, all of a run on one page that needs no network; `report.md`, its model card; `plots/<name>.png`,
    the main plots: `headline`, `recall`, and where there is what they show `gain`, `calibration`,
    `calibration_impressions` and `map`."""

    type: ClassVar[str] = "Report"
