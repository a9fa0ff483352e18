"""The bundle: both stages as one SavedModel that TF Serving loads as it is."""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from shortlist import ShortlistError
from shortlist.components._catalogue import write_catalogue
from shortlist.components._config import Config, parse
from shortlist.components._first_stage import ShortlistConfig, build_shortlist
from shortlist.components._prediction_log import LIMIT, WARMUP, log_record, write_logs
from shortlist.components._progress import progress
from shortlist.components._queries import EncodedData, known_weight, weight_source
from shortlist.components._records import choose_requests, describe_signatures, recorded_inputs
from shortlist.components._replay import RECORDS, answer, fingerprints, tensors
from shortlist.components.artifacts import Bundle, Candidates, Encoded, Index, Model
from shortlist.components.pipeline import Component

if TYPE_CHECKING:
    from shortlist.models._bundle import Stored


class ExporterConfig(Config):
    """Settings of `Exporter`.

    Args:
      name: the model's name in TF Serving.
      default_k: the k of a request that gives none.
    """

    name: str = pydantic.Field("shortlist", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    default_k: int = pydantic.Field(10, ge=1, le=10_000)


class Exporter(Component):
    """Puts the sources, the ranker, the vocabularies and what known users did into one SavedModel.

    The first stage is built as for the ranker's training, over the catalogue of `encoded`. With a refit, `encoded` and
    `sources` know every split, while the ranker was trained and measured on the candidates of sources that didn't.
    Everything that is known counts as history: a bundle made for serving has no split to keep back.
    """

    output = Bundle

    def __init__(self, config: ExporterConfig | None = None, name: str = ""):
        self.config: ExporterConfig = config or ExporterConfig()
        super().__init__(self.config, name)

    def run(
        self, out: Path, encoded: Encoded, sources: dict[str, Index], candidates: Candidates, ranker: Model
    ) -> None:
        """See `Bundle` for what is written.

        Raises:
          ShortlistError: if the ranker was trained on other candidates, a source was made for another catalogue, or the
            first stage does not give the ranker the features that it was trained with.
        """
        import tensorflow as tf

        from shortlist.models._bundle import Servable
        from shortlist.models._transform import RequestReader

        ranker.refuse_unless_made_from(candidates)
        info = candidates.read_json("candidates.json")
        if list(sources) != info["sources"]:
            raise ShortlistError(
                f"`sources` must be those of the candidates, in their order: {', '.join(info['sources'])}. "
                f"Received: {', '.join(sources)}."
            )
        data = EncodedData(encoded)
        first_stage = build_shortlist(data, sources, parse(ShortlistConfig, info["shortlist"], "the candidates"))
        if first_stage.features.names != info["feature_names"]:
            other = sorted(set(first_stage.features.names) ^ set(info["feature_names"]))
            raise ShortlistError(
                "`ranker` must be given the features that it was trained with; run the pipeline again, so that the "
                f"candidates and the sources come from the same settings. Received: a difference in {', '.join(other)}."
            )
        scorer = tf.saved_model.load(str(ranker / "serving"))
        rows = data.rows(*encoded.known)
        weight_from = weight_source(data)
        learned = ranker.read_json("model.json").get("expected_watch_time")
        times = rows["timestamp"]
        newest, oldest = int(times.max(initial=0)), int(times.min(initial=times.max(initial=0)))
        ids = data.items["id"]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "titles.txt"
            titles = [re.sub(r"[\r\n]+", " ", title) for title in data.items["title"][2:]]
            file.write_text("".join(f"{line}\n" for line in titles), "utf-8")
            servable = Servable(
                first_stage,
                scorer,
                item_file=str(encoded / "items.txt"),
                user_file=str(encoded / "users.txt"),
                title_file=str(file),
                item_ids=ids.astype(str),
                stored=store(rows, data),
                now=newest,
                default_k=self.config.default_k,
                reader=RequestReader(data.state["request"], str(encoded.uri), of_users(data), data.state["time_zone"]),
                weight_from=weight_from,
                ranker_rows=_rows_of(ranker, ids),
                unit=learned["unit"] if learned else None,
            )
            for loaded in (*first_stage.sources.values(), scorer):
                forget_functions(loaded, keep="scores")
            signatures = servable.interface
            users = data.users["id"][data.users["user"] >= 2]
            chosen = choose_requests(ids[2:], users, newest, oldest, said(data), list(sources))
            requests = recorded_inputs(chosen, ids[2:], list(data.contexts))
            inputs = {name: requests[name] for name in signatures}
            with asking(signatures, inputs) as asked:  # TensorFlow optimizes graphs while Python writes them
                tf.saved_model.save(servable, str(out / "saved_model"), signatures=signatures)
        names = np.array(data.state["genres"], object)
        about = {
            "sources": list(sources),
            "contexts": {name: vocabulary(data, name) for name in data.contexts},
            "features": sorted(servable.example_features),
            "size": first_stage.size,
        }
        genres = [names[row > 0].tolist() for row in data.items["genres"][2:]]
        write_catalogue(out / "saved_model", ids[2:].tolist(), titles, data.items["year"][2:].tolist(), genres, about)
        features = servable.example_features
        defaults = {
            **dict.fromkeys([*features, "candidates", "item", "weights"], "absent"),
            "time": f"{newest}, the newest of the data",
            "k": str(self.config.default_k),
            **{f"quota_{name}": str(quota) for name, quota in first_stage.quota.items()},
        }
        page = describe_signatures(
            signatures, features, defaults, info["feature_names"], list(sources), self.config.name
        )
        (out / "signatures.md").write_text(page, "utf-8")
        self._record(out, signatures, inputs, {name: answers.result() for name, answers in asked.items()})

    def _record(
        self,
        out: Path,
        signatures: Mapping[str, Any],
        inputs: Mapping[str, list[dict[str, Any]]],
        answered: Mapping[str, list[dict[str, np.ndarray]]],
    ) -> None:
        """Writes requests and answers, in the form of TF Serving's REST requests by columns and as its logs."""
        records, logs = [], []
        for name, requests in inputs.items():
            for request, found in zip(requests, answered[name], strict=True):
                outputs = {key: value.tolist() for key, value in found.items()}
                records.append({"signature_name": name, "inputs": request, "outputs": outputs})
                given = {key: value.numpy() for key, value in tensors(signatures[name], request).items()}
                logs.append(log_record(self.config.name, name, given, found))
        write_logs(out / "saved_model" / WARMUP, logs[:LIMIT])
        types = {
            name: {key: spec.dtype.name for key, spec in signatures[name].structured_input_signature[1].items()}
            for name in sorted(inputs)
        }
        record = {"files": fingerprints(out), "signatures": sorted(inputs), "types": types, "requests": records}
        (out / RECORDS).write_text(json.dumps(record), "utf-8")


@contextlib.contextmanager
def asking(
    signatures: Mapping[str, Any], inputs: Mapping[str, list[dict[str, Any]]]
) -> Iterator[dict[str, Future[list[dict[str, np.ndarray]]]]]:
    """The answers to the requests of each signature, which are made beside what is done within."""

    def ask(name: str) -> list[dict[str, np.ndarray]]:
        found = []
        for request in inputs[name]:
            found.append(answer(signatures[name], request))
            advance(1)
        return found

    # TensorFlow looks through a whole graph at its first request, on one core.
    with progress("recorded requests", sum(map(len, inputs.values()))) as advance, ThreadPoolExecutor() as pool:
        yield {name: pool.submit(ask, name) for name in inputs}


def forget_functions(loaded: Any, keep: str) -> None:
    """Takes the functions off a loaded object, and off those in it, but for its own of one name.

    The signatures hold what they call of them. What is still there would be traced, saved and loaded once more.
    """
    import tensorflow as tf

    for name, value in list(vars(loaded).items()):
        if isinstance(value, tf.types.experimental.PolymorphicFunction) and name != keep:
            delattr(loaded, name)
        elif isinstance(value, tf.__internal__.tracking.AutoTrackable):
            forget_functions(value, keep="")


def _rows_of(ranker: Model, ids: np.ndarray) -> np.ndarray | None:
    """The ranker's own row of every item, 1 for one that it doesn't know; None if it has no table of them."""
    file = ranker / "items.txt"
    if not file.exists():
        return None
    own = {item: row for row, item in enumerate(file.read_text("utf-8").split("\n")[:-1], 2)}
    return np.array([0, 1, *(own.get(item, 1) for item in ids[2:])], np.int32)


def store(rows: dict[str, np.ndarray], data: EncodedData) -> "Stored":
    """What users of the vocabulary did with known items, by user row, oldest first."""
    from shortlist.models._bundle import Stored

    keep = (rows["user"] >= 2) & (rows["item"] >= 2)
    user, time = rows["user"][keep], rows["timestamp"][keep]
    order = np.lexsort((time, user))  # stable: ties keep the order of the splits
    splits = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=data.num_users))])
    item, positive, watched = (rows[name][keep][order] for name in ("item", "positive", "watched"))
    return Stored(splits, item, time[order], positive, watched, known_weight(data, rows)[keep][order])


def vocabulary(data: EncodedData, name: str) -> list[str]:
    """The values of something that a request may say."""
    return (data.artifact / f"{data.state['request'][name]['file']}.txt").read_text("utf-8").split("\n")[:-1]


def said(data: EncodedData) -> dict[str, Any]:
    """A value of everything that a request may say beside user, history and time."""
    found: dict[str, Any] = {}
    for name, info in data.state["request"].items():
        if info["kind"] == "number":
            found[name] = float(info["quantiles"][0])
        else:
            words = vocabulary(data, name)[:2]
            found[name] = " ".join(words) if info["kind"] == "tokens" else words[0]
    return found


def of_users(data: EncodedData) -> dict[str, np.ndarray]:
    """The columns that users of the vocabulary have, by user row; 0 or NaN for the others."""
    known = data.users["user"] >= 2
    found = {}
    for name, kind in data.kinds.items():
        if name.startswith("user_"):
            found[name] = np.full(data.num_users, np.nan if kind == "number" else 0, data.users[name].dtype)
            found[name][data.users["user"][known]] = data.users[name][known]
    return found
