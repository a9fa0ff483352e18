"""KerasTuner's oracles, made to survive a kill at any moment and to begin with the shipped settings."""

import json
import math
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras_tuner
import numpy as np
from keras_tuner import oracles
from keras_tuner.engine.trial import Trial

from shortlist.components._files import replace_file

if TYPE_CHECKING:
    from keras_tuner import Oracle as Base
else:
    Base = object

BETA = 1.0
"""Of the Bayesian search's confidence bound: KerasTuner's 2.6 explores too much to beat random search in 25 trials. Nor
can it learn from 25 if the first 3 a setting are random, as they are there."""
CANDIDATES, STARTS = 2048, 8
"""Of the Bayesian search: random points at which the bound is looked at, and the best of them that it is followed from.
KerasTuner follows it from 50 random points, one prediction at a time, which keeps a person waiting for seconds a trial.
"""
SAME = 1e-3
"""Of each setting's range: trials so close to each other in all settings teach nothing new."""
LENGTHS, KERNEL_STARTS = (0.05, 10.0), 4
"""Of the fit of the kernel's length, in sides of the unit cube. Between KerasTuner's bounds, 1e-5 and 1e5, it may take
the first trials for noise or for a plain, and then learns no more.
"""
NEAR_1 = 1 - 1e-9
"""KerasTuner maps [0, 1) to the values of a setting. At 1 a whole number leaves its range."""


class Durable(Base):
    """What every oracle here has besides.

    - Its whole state is one file, replaced at once after each change, so that a killed sweep goes on from the last one.
      KerasTuner writes several files one after the other, and a kill in between loses trials or runs them twice.
    - The trial that a tuner had is given to that tuner again when it comes back.
    - The first trial has the settings that the space begins with, so no sweep ends below them.
    - After the deadline there are no new trials.

    Attributes:
      file: where the state is kept.
      deadline: seconds since 1970.
    """

    file: Path
    deadline: float = math.inf

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        if time.time() >= self.deadline:
            return {"status": "STOPPED"}
        return super().populate_space(trial_id)

    def _random_values(self) -> dict[str, Any] | None:
        if self.start_order:
            return super()._random_values()
        space = self.get_space()
        return {hp.name: hp.default for hp in space.space if space.is_active(hp)}

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        trial = super().create_trial(tuner_id)
        self.commit()
        return trial

    @keras_tuner.synchronized
    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Trial:
        trial = super().update_trial(trial_id, metrics, step)
        self.commit()
        return trial

    @keras_tuner.synchronized
    def end_trial(self, trial: Trial) -> None:
        if trial.trial_id in self.end_order:  # told twice, by one who got no answer from a dying chief
            return
        # What comes back from another process has other values too: see `SearchSpace.decode`.
        trial.hyperparameters = self.trials[trial.trial_id].hyperparameters
        super().end_trial(trial)
        self.commit()

    def commit(self) -> None:
        """Writes the state."""
        trials = {key: trial.get_state() for key, trial in self.trials.items()}
        replace_file(self.file, json.dumps({"oracle": self.get_state(), "trials": trials}))

    def restore(self) -> None:
        """Goes on from the file."""
        state = json.loads(self.file.read_text("utf-8"))
        self.trials = {key: Trial.from_state(trial) for key, trial in state["trials"].items()}
        self.set_state(state["oracle"])
        self.tuner_ids = set(self.ongoing_trials)  # the chief waits for them

    def save(self) -> None:
        """Left to `commit`: KerasTuner calls this in the middle of a change."""

    def _save_trial(self, trial: Trial) -> None:
        """Left to `commit`."""


class RandomSearch(Durable, oracles.RandomSearchOracle):
    """Every trial drawn by itself."""


class GridSearch(Durable, oracles.GridSearchOracle):
    """Every combination, numbers without a step at ten places."""

    def get_state(self) -> dict[str, Any]:
        order: list[str] = []
        index = self._ordered_ids._next_index[None]
        while index is not None:
            order.append(self._ordered_ids._memory[index])
            index = self._ordered_ids._next_index[index]
        return {**super().get_state(), "ordered_ids": order, "populate_next": self._populate_next}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        for trial_id in state["ordered_ids"]:
            self._ordered_ids.insert(trial_id)
        self._populate_next = state["populate_next"]


class Hyperband(Durable, oracles.HyperbandOracle):
    """Many short trainings, of which the best go on."""


class GaussianProcess(oracles.BayesianOptimizationOracle):
    """KerasTuner's search by a Gaussian process with a faster way to the minimum of its bound, and nothing twice."""

    def _make_gpr(self) -> Any:
        from sklearn.gaussian_process.kernels import Matern

        kernel = Matern(nu=2.5, length_scale_bounds=LENGTHS)
        return super()._make_gpr().set_params(kernel=kernel, n_restarts_optimizer=KERNEL_STARTS)

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        if sum(t.status == "COMPLETED" for t in self.trials.values()) < self.num_initial_points:
            return self._random_populate_space()
        # Threads cost more than they give on matrices of that size; a kernel's length at its bound is one as good.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._fit()
            tried = np.array([self._vector(t.hyperparameters.values) for t in self.trials.values()])
            for point in self._promising():
                values = self._vector_to_values(point)
                if np.abs(tried - self._vector(values)).max(axis=1).min() > SAME:
                    return {"status": "RUNNING", "values": values}
        return self._random_populate_space()

    def _fit(self) -> None:
        """First to what has finished. What it then expects of the trials under way takes their place."""
        seen = [t.status == "COMPLETED" for t in self.trials.values() if t.status not in ("FAILED", "INVALID")]
        x, y = self._vectorize_trials()
        self.gpr.fit(x[seen], y[seen])
        if not all(seen):
            self.gpr.fit(*self._vectorize_trials())

    def _vector(self, values: dict[str, Any]) -> list[float]:
        """As `_vectorize_trials` has it: an inactive setting stands at its default."""
        return [hp.value_to_prob(values.get(hp.name, hp.default)) for hp in self._nonfixed_space()]

    def _promising(self) -> np.ndarray:
        """Points of the unit cube, [STARTS + CANDIDATES, settings], those with the lowest bound first."""
        from scipy.optimize import minimize

        size = len(self._nonfixed_space())
        points = self._random_state.uniform(0, NEAR_1, (CANDIDATES, size))
        points = points[np.argsort(self._bound(points), kind="stable")]
        step = 1e-6
        nudges = np.vstack([np.zeros(size), step * np.eye(size)])

        def bound_and_slope(point: np.ndarray) -> tuple[float, np.ndarray]:
            values = self._bound(point + nudges)
            return values[0], (values[1:] - values[0]) / step

        limits = [(0.0, NEAR_1)] * size
        ends = [minimize(bound_and_slope, p, jac=True, bounds=limits, method="L-BFGS-B") for p in points[:STARTS]]
        return np.vstack([*(e.x for e in sorted(ends, key=lambda e: float(e.fun))), points])

    def _bound(self, points: np.ndarray) -> np.ndarray:
        mean, deviation = self.gpr.predict(points, return_std=True)
        return mean - self.beta * deviation


class Bayesian(Durable, GaussianProcess):
    """Where a Gaussian process of the trials so far promises most."""

    def get_state(self) -> dict[str, Any]:
        kind, keys, *rest = self._random_state.get_state()
        return {**super().get_state(), "random_state": [kind, keys.tolist(), *rest]}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._random_state.set_state(tuple(state["random_state"]))


ORACLES = {"random": RandomSearch, "bayesian": Bayesian, "hyperband": Hyperband, "grid": GridSearch}


def make_oracle(
    algorithm: str,
    file: Path,
    objective: str,
    space: keras_tuner.HyperParameters,
    trials: int | None,
    seed: int,
    max_epochs: int | None = None,
    factor: int = 3,
) -> Durable:
    """An oracle that maximizes `objective`, going on from `file` where it is there.

    Args:
      algorithm: "random", "bayesian", "hyperband" or "grid".
      file: where the state is kept.
      objective: name of the metric.
      space: all settings; none is added later.
      trials: the most; None for all of a grid or of one pass of Hyperband.
      seed: of the draws.
      max_epochs: of Hyperband: what the best trials are trained for.
      factor: of Hyperband: one of so many trials goes on, with so many times the epochs.
    """
    arguments: dict[str, Any] = {
        "objective": keras_tuner.Objective(objective, "max"),
        "hyperparameters": space,
        "allow_new_entries": False,
        "tune_new_entries": False,
        # KerasTuner adds up small numbers to the seed, so those of seeds beside each other would be the same draws.
        "seed": seed * 1_000_003 % (2**32 - 1) + 1,
        "max_consecutive_failed_trials": 2**31,
    }
    if algorithm == "hyperband":
        arguments |= {"max_epochs": max_epochs, "factor": factor}
    else:
        arguments["max_trials"] = trials
    if algorithm == "bayesian":
        arguments |= {"beta": BETA, "num_initial_points": max(4, len(space.space) + 1)}
    oracle = ORACLES[algorithm](**arguments)
    oracle.max_trials, oracle.file, oracle.verbose = trials, file, 0
    if file.exists():
        oracle.restore()
    return oracle
