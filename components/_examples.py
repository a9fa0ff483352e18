"""(history, next item) training examples from encoded interactions, without a loop over users."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from shortlist.components._analysis import Quantiles, analyse
from shortlist.components._batches import ahead
from shortlist.components._queries import NO_TIME, Rows
from shortlist.components._stored_rows import StoredRows

Batch = dict[str, np.ndarray]
QUANTILES = np.linspace(0, 1, 101)


class NextItemExamples:
    """Random prefixes of each user's positives: what was watched next, given what was watched before.

    The history of a label holds only that user's positives at strictly earlier timestamps; a label with no such
    history makes no example. Every user gives the same number of examples an epoch.

    Args:
      rows: encoded interactions, sorted by user and time.
      history_length: L, the last positives kept.
      examples_per_user: drawn with replacement an epoch, for every user that has one.
      further: what else an example holds by name: arrays `[N, ...]`, one entry a row, of which it gets its label's.

    Attributes:
      usable: the rows that can be a label.
    """

    def __init__(
        self,
        rows: Rows,
        history_length: int,
        examples_per_user: int,
        further: Mapping[str, np.ndarray] | None = None,
    ):
        keep = rows["positive"] & (rows["item"] >= 2) & (rows["timestamp"] < NO_TIME)
        self.user, self.item, self.time = rows["user"][keep], rows["item"][keep], rows["timestamp"][keep]
        self.further = {name: values[keep] for name, values in (further or {}).items()}
        self.history_length, self.examples_per_user = history_length, examples_per_user
        key = rows["user_key"][keep]
        n = len(key)
        first_of_user = np.searchsorted(key, key, "left")
        new_time = np.concatenate([[True], (key[1:] != key[:-1]) | (self.time[1:] != self.time[:-1])])[:n]
        first_of_tie = np.maximum.accumulate(np.where(new_time, np.arange(n), 0))
        self.start, self.stop = np.maximum(first_of_user, first_of_tie - history_length), first_of_tie
        self.usable = np.flatnonzero(self.stop > first_of_user)
        self.users, self.first, self.count = np.unique(key[self.usable], return_index=True, return_counts=True)

    def __len__(self) -> int:
        """Examples an epoch."""
        return len(self.users) * self.examples_per_user

    @property
    def labels(self) -> int:
        """How many rows can be a label."""
        return len(self.usable)

    def label_counts(self, num_items: int) -> np.ndarray:
        """The expected number of times each item is a label in an epoch, float64 `[I]`."""
        per_row = np.repeat(self.examples_per_user / self.count, self.count)
        return np.bincount(self.item[self.usable], per_row, minlength=num_items)

    def quantiles(self, name: str) -> tuple[float, ...]:
        """101 quantiles of what an example holds by that name, over all positives."""
        return tuple(np.quantile(self.further[name], QUANTILES).tolist())

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The labels of an epoch in random order, rows int64 `[N]`."""
        draw = rng.random((len(self.users), self.examples_per_user)) * self.count[:, np.newaxis]
        picked = self.usable[(self.first[:, np.newaxis] + draw.astype(np.int64)).ravel()]
        rng.shuffle(picked)
        return picked

    def epoch(self, rng: np.random.Generator) -> Batch:
        """One epoch in random order: `user`, `history` `[N, L]`, `history_time`, `time`, `label` and `further`."""
        return self.at(self.draw(rng))

    def batches(self, rng: np.random.Generator, size: int) -> Iterator[Batch]:
        """An epoch in batches, each made when it is asked for; it is drawn at once."""
        picked = self.draw(rng)
        return (self.at(picked[start : start + size]) for start in range(0, len(picked), size))

    def one(self) -> Batch:
        """One example."""
        return self.at(self.usable[:1])

    def at(self, picked: np.ndarray) -> Batch:
        """The examples whose labels are the rows `picked`."""
        position = self.start[picked][:, np.newaxis] + np.arange(self.history_length)  # [N, L]
        inside = position < self.stop[picked][:, np.newaxis]
        position = np.where(inside, position, 0)
        return {
            "user": self.user[picked],
            "history": np.where(inside, self.item[position], 0),
            "history_time": np.where(inside, self.time[position], 0),
            "time": self.time[picked],
            "label": self.item[picked],
            **{name: values[picked] for name, values in self.further.items()},
        }


class StreamedExamples:
    """`NextItemExamples` of rows that stay on disk.

    An epoch goes through windows of about `window` rows. Each is made of pieces that are drawn from the whole part
    anew every epoch, and its examples come in random order, so that a batch mixes users from everywhere; while one
    window is trained on, the next is read.

    Args:
      rows: the encoded interactions.
      make: the examples of some of them.
      window: rows that are held at a time; the next one's come on top.
    """

    def __init__(self, rows: StoredRows, make: Callable[[Rows], NextItemExamples], window: int):
        self.rows, self.make, self.window = rows, make, window
        self._counts, self._size, self.labels = np.zeros(rows.num_items), 0, 0
        for examples in self._examples(rows.windows(window)):
            self._counts += examples.label_counts(rows.num_items)
            self._size += len(examples)
            self.labels += examples.labels
            if examples.labels:
                self._one = examples.one()

    def __len__(self) -> int:
        """Examples an epoch."""
        return self._size

    def label_counts(self, num_items: int) -> np.ndarray:
        """As there; `num_items` is that of the data."""
        return self._counts

    def one(self) -> Batch:
        """One example."""
        return self._one

    def quantiles(self, name: str) -> tuple[float, ...]:
        """As there, to the error that `Quantiles` states."""
        tables = (
            pa.table({name: examples.further[name]}) for examples in self._examples(self.rows.windows(self.window))
        )
        analysis = Quantiles(name)
        return tuple(analysis.result(analyse(analysis, tables)).quantiles(QUANTILES))

    def batches(self, rng: np.random.Generator, size: int) -> Iterator[Batch]:
        """An epoch in batches; what is drawn of `rng` does not depend on whether they are asked for."""
        return self._batches(np.random.default_rng(rng.integers(2**63)), size)

    def _batches(self, rng: np.random.Generator, size: int) -> Iterator[Batch]:
        held: Batch | None = None  # what the windows before have left, less than a batch
        for examples in self._examples(self.rows.windows(self.window, rng)):
            picked, start = examples.draw(rng), 0
            if held is not None:
                start = size - len(held["label"])
                more = examples.at(picked[:start])
                held = {name: np.concatenate([values, more[name]]) for name, values in held.items()}
                if len(held["label"]) < size:
                    continue
                yield held
            stop = start + (len(picked) - start) // size * size
            for begin in range(start, stop, size):
                yield examples.at(picked[begin : begin + size])
            held = examples.at(picked[stop:]) if stop < len(picked) else None
        if held is not None:
            yield held

    def _examples(self, windows: Iterator[np.ndarray]) -> Iterator[NextItemExamples]:
        """The examples of each window, the next one's made while one is used."""
        return ahead(self.make(self.rows.read(pieces)) for pieces in windows)
