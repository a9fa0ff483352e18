"""Tuner: trials of one search, in this process or in several, on KerasTuner's oracles."""

import contextlib
import json
import math
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_tuner import errors
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial

from shortlist import ShortlistError
from shortlist.components._files import replace_file
from shortlist.components._oracles import Durable
from shortlist.components._search_space import SearchSpace
from shortlist.components._trials import TrialRecord, best_trial
from shortlist.components._workers import IP, end_with_supervisor, keep_asking
from shortlist.components.pipeline import disk_errors

MOST_DEATHS = 2
"""A trial that took its process with it so many times is recorded as failed, and not tried again."""
STATE = "oracle.json"


@dataclass(frozen=True)
class Outcome:
    """What a trial found.

    Args:
      objective: the metric on `validation`.
      epochs: that the model was trained for in all; None where it has none.
      stopped_early: whether `patience` ended the training before.
      logs: folders of TensorBoard, by model.
    """

    objective: float
    epochs: int | None = None
    stopped_early: bool = False
    logs: tuple[Path, ...] = ()


Measure = Callable[[dict[str, Any], tuple[int, ...]], Outcome]
"""From a trial's settings and the epochs after which its training pauses (Hyperband's rungs; the last one is where it
ends; empty for the configured epochs) to what was found."""


class Tuner(BaseTuner):
    """Runs `measure` for one trial after the other, as the oracle or its chief process hands them out.

    KerasTuner builds and fits Keras 3 models itself; here a trial is whatever `measure` does. A trial that fails is
    recorded and the search goes on; a disk that cannot be written ends it, for every trial would fail.

    Args:
      oracle: of `make_oracle`.
      measure: see there.
      space: what the trials may set.
      folder: of the search. The record of a trial lies in `trials/<id>.json`, TensorBoard's in `tensorboard/<id>`.
    """

    def __init__(self, oracle: Durable, measure: Measure, space: SearchSpace, folder: Path):
        self.measure, self.space, self.folder = measure, space, folder
        self.idle = False
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        super().__init__(oracle, directory=str(folder.parent), project_name=folder.name)
        if self._is_worker():
            keep_asking(self.oracle)

    def search(self, *args: Any, **kwargs: Any) -> None:
        """Runs trials until there are none.

        Raises:
          FatalError: for a disk that cannot be written; the trial is run again when the search goes on.
          ShortlistError: if the chief fails.
        """
        import grpc

        end_with_supervisor()
        try:
            super().search(*args, **kwargs)
        except grpc.RpcError as error:
            raise ShortlistError(
                f"`{IP}` must lead to a chief that answers. Look there for what is wrong, and start this one again. "
                f"Received: {error.details()}."
            ) from error

    def pre_create_trial(self) -> None:
        """Waits a little if there was nothing to do."""
        if self.idle:
            time.sleep(0.5)
        self.idle = True

    def on_trial_begin(self, trial: Trial) -> None:
        self.idle = False

    def run_trial(self, trial: Trial, *args: Any, **kwargs: Any) -> float:
        file = self.folder / "trials" / f"{trial.trial_id}.json"
        deaths = _read(file).get("deaths", 0)
        record: dict[str, Any] = {"started": time.time(), "worker": self.tuner_id}
        try:
            with disk_errors(self.folder):
                replace_file(file, json.dumps({**record, "deaths": deaths + 1}))  # until it has come to an end
            if deaths >= MOST_DEATHS:
                raise ShortlistError(
                    f"its process died {deaths} times. Memory may be short: try a smaller range, or fewer --workers."
                )
            rungs = self._rungs(trial.hyperparameters.values)
            outcome = self.measure(self.space.decode(trial.hyperparameters.values), rungs)
            if not math.isfinite(outcome.objective):
                raise ShortlistError(
                    f"`{self.oracle.objective.name}` must be a finite number. Received: {outcome.objective}."
                )
            record |= {"epochs": outcome.epochs, "stopped_early": outcome.stopped_early}
            record["initial_epoch"] = rungs[-2] if len(rungs) > 1 else 0
            with disk_errors(self.folder):
                self._write_tensorboard(trial, outcome)
            return outcome.objective
        except Exception as error:
            if isinstance(error.__cause__, OSError):
                raise errors.FatalError(str(error)) from error
            record["message"] = " ".join(str(error).split())[:1000] or type(error).__name__
            record["traceback"] = traceback.format_exc()
            raise errors.FailedTrialError(record["message"]) from error
        finally:
            record |= {"deaths": deaths, "seconds": time.time() - record["started"]}
            with contextlib.suppress(OSError):  # a full disk ends the search at the oracle's own file, if not above
                replace_file(file, json.dumps(record))

    def on_trial_end(self, trial: Trial) -> None:
        super().on_trial_end(trial)
        _forget()

    def _rungs(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        """The epochs of this trial and of those that it goes on from, which `tuner/trial_id` names, the first first."""
        if "tuner/epochs" not in values:
            return ()
        before = values.get("tuner/trial_id") if values.get("tuner/initial_epoch") else None
        earlier = self._rungs(self.oracle.get_trial(before).hyperparameters.values) if before is not None else ()
        return (*earlier, int(values["tuner/epochs"]))

    def _write_tensorboard(self, trial: Trial, outcome: Outcome) -> None:
        """A run of TensorBoard's HParams view, and the curves of the training beside it."""
        import tensorflow as tf
        from tensorboard.plugins.hparams import api as hp

        folder = self.folder / "tensorboard" / trial.trial_id
        shutil.rmtree(folder, ignore_errors=True)
        for logs in outcome.logs:
            shutil.copytree(logs, folder, dirs_exist_ok=True)
        settings = self.space.decode(trial.hyperparameters.values)
        plain = {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in settings.items()}
        with tf.summary.create_file_writer(str(folder)).as_default():
            hp.hparams(plain, trial_id=trial.trial_id)
            tf.summary.scalar(self.oracle.objective.name, outcome.objective, step=outcome.epochs or 0)

    def save(self) -> None:
        """Left to the oracle, which keeps itself."""


def read_trials(folder: Path, space: SearchSpace, stage: str = "") -> list[TrialRecord]:
    """The trials of a search so far, in their order, the running ones too (`status` "running").

    Args:
      folder: of the search.
      space: of the search.
      stage: its name in the records.
    """
    state = _read(folder / STATE)
    records = []
    for key in state.get("oracle", {}).get("start_order", []):
        trial = state["trials"][key]
        found = _read(folder / "trials" / f"{key}.json")
        values = trial["hyperparameters"]["values"]
        status = {"COMPLETED": "completed", "RUNNING": "running"}.get(trial["status"], "failed")
        if status == "completed" and found.get("stopped_early"):
            status = "early-stopped"
        decoded = space.decode(values).items()
        records.append(
            TrialRecord(
                stage=stage,
                trial=key,
                status=status,
                objective=trial["score"] if status in ("completed", "early-stopped") else None,
                settings={n: v if isinstance(v, bool | int | float | str) else json.dumps(v) for n, v in decoded},
                epochs=found.get("epochs"),
                initial_epoch=found.get("initial_epoch", 0),
                parent=values.get("tuner/trial_id"),
                started=found.get("started", 0.0),
                seconds=found.get("seconds", 0.0),
                worker=found.get("worker", ""),
                message=found.get("message", ""),
            )
        )
    return records


def best_settings(folder: Path, space: SearchSpace) -> tuple[dict[str, Any], int | None] | None:
    """The settings of the best finished trial and, where Hyperband set them, its epochs; None if none has finished."""
    best = best_trial(read_trials(folder, space))
    return settings_of(folder, space, best.trial) if best else None


def settings_of(folder: Path, space: SearchSpace, trial: str) -> tuple[dict[str, Any], int | None]:
    """The settings of a trial and, where Hyperband set them, its epochs."""
    values = _read(folder / STATE)["trials"][trial]["hyperparameters"]["values"]
    return space.decode(values), values.get("tuner/epochs")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def _forget() -> None:
    """Frees what a trial held: Keras keeps every model's graph for the next one."""
    import tensorflow as tf

    tf.keras.backend.clear_session()
