"""Training examples from encoded interactions, without a loop over users: (history, next item), (word, next word)."""

from collections.abc import Mapping

import numpy as np

from shortlist.components._queries import NO_TIME, Rows


class NextItemExamples:
    """Random prefixes of each user's positives: what was watched next, given what was watched before.

    The history of a label holds only that user's positives at strictly earlier timestamps; a label with no such
    history makes no example. Every user gives the same number of examples an epoch.

    Args:
      rows: encoded interactions, sorted by user and time.
      history_length: L, the last positives kept.
      examples_per_user: drawn with replacement an epoch, for every user that has one.
      further: what else an example holds by name: arrays `[N, ...]`, one entry a row, of which it gets its label's.
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

    def label_counts(self, num_items: int) -> np.ndarray:
        """The expected number of times each item is a label in an epoch, float64 `[I]`."""
        per_row = np.repeat(self.examples_per_user / self.count, self.count)
        return np.bincount(self.item[self.usable], per_row, minlength=num_items)

    def epoch(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One epoch in random order: `user`, `history` `[N, L]`, `history_time`, `time`, `label` and `further`."""
        draw = rng.random((len(self.users), self.examples_per_user)) * self.count[:, np.newaxis]
        picked = self.usable[(self.first[:, np.newaxis] + draw.astype(np.int64)).ravel()]
        rng.shuffle(picked)
        return self.at(picked)

    def at(self, picked: np.ndarray) -> dict[str, np.ndarray]:
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


def following_words(user_key: np.ndarray, searches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which words a user searches for after which: each word of a search with each of the same user's next search.

    Rows with the words of the row before belong to the same search; a word does not follow itself.

    Args:
      user_key: int `[N]`, sorted by user and time.
      searches: int `[N, T]`, the words of each row; rows 0 and 1, padding and unknown, are no words.

    Returns:
      The words and their followers, int32 `[P]` each.
    """
    said = (searches >= 2).any(axis=1)
    key, words = user_key[said], searches[said]
    same = (key[1:] == key[:-1]) & (words[1:] == words[:-1]).all(axis=1)
    new = np.concatenate([[True], ~same])[: len(key)]
    key, words = key[new], words[new]
    at = np.flatnonzero(key[1:] == key[:-1])
    word, follower = np.broadcast_arrays(words[at][:, :, np.newaxis], words[at + 1][:, np.newaxis])  # [S, T, T]
    keep = (word >= 2) & (follower >= 2) & (word != follower)
    return word[keep].astype(np.int32), follower[keep].astype(np.int32)
