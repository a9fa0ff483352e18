"""The methods that an experiment with context compares: each is fitted to some ratings and predicts others."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.components.context import SplitByContextConfig, Splits, best_splits
from shortlist.models._base import FIRST_ID
from shortlist.models._post_filter import PostFilter
from shortlist.models.camf import CAMF, DEVIATIONS, BiasedMF
from shortlist.models.two_tower import TwoTower

Settings = dict[str, Any]


@dataclass(frozen=True)
class Ratings:
    """Rated rows: `user` and `item` int32 `[N]` from 0 on, `conditions` int32 `[N, C]` from 1 on, 0 where not known."""

    user: np.ndarray
    item: np.ndarray
    conditions: np.ndarray
    rating: np.ndarray
    users: int
    items: int
    contexts: Mapping[str, int]

    def rows(self, keep: np.ndarray) -> "Ratings":
        """Some of the rows, of the same users, items and contexts."""
        return replace(self, **{name: getattr(self, name)[keep] for name in ("user", "item", "conditions", "rating")})


def by_dimension(contexts: Mapping[str, int], conditions: np.ndarray) -> dict[str, np.ndarray]:
    """Conditions `[N, C]` as the columns of a query."""
    return {f"context_{name}": conditions[:, j] for j, name in enumerate(contexts)}


class Method:
    """A method is fitted with settings drawn from its space, as often as wanted. Abstract."""

    predicts = True
    """Whether it predicts ratings; else it only ranks."""

    def draw(self, rng: np.random.Generator) -> Settings:
        """Settings to try."""
        return {}

    def fit(self, train: Ratings, settings: Settings) -> None:
        raise NotImplementedError

    def predict(self, of: Ratings) -> np.ndarray:
        """A rating for each row of `of`, float `[N]`."""
        raise NotImplementedError

    def scores(self, user: np.ndarray, conditions: np.ndarray, items: int) -> np.ndarray:
        """Of all items, float `[Q, I]`, for each query: a user and its conditions `[Q, C]`."""
        raise NotImplementedError


class ItemAverage(Method):
    """μ + b_i, b_i drawn to 0 by so many ratings."""

    def draw(self, rng: np.random.Generator) -> Settings:
        return {"shrinkage": _between(rng, 0.3, 30)}

    def fit(self, train: Ratings, settings: Settings) -> None:
        self.mean = train.rating.mean()
        sums = np.bincount(train.item, train.rating - self.mean, train.items)
        self.value = self.mean + sums / (np.bincount(train.item, minlength=train.items) + settings["shrinkage"])

    def predict(self, of: Ratings) -> np.ndarray:
        return self.value[of.item]

    def scores(self, user: np.ndarray, conditions: np.ndarray, items: int) -> np.ndarray:
        return np.tile(self.value, (len(user), 1))


class Popularity(ItemAverage):
    """How often an item is rated; it predicts no rating."""

    predicts = False

    def draw(self, rng: np.random.Generator) -> Settings:
        return {}

    def fit(self, train: Ratings, settings: Settings) -> None:
        self.value = np.bincount(train.item, minlength=train.items).astype(float)


class Factorization(Method):
    """`BiasedMF`, or `CAMF` with a deviation. One model is fitted again and again.

    Args:
      data: what the experiment is about; a model gets `halves` times its users and items, for what is split.
      deviation: of `CAMF`; none makes it a `BiasedMF`.
      epochs: over so many rows as `data` has.
      batch_size: rows a step.
      seed: of the initial weights and of the order of the rows.
      halves: 2 where items or users are split.
    """

    def __init__(
        self,
        data: Ratings,
        deviation: str = "",
        epochs: int = 60,
        batch_size: int = 1024,
        seed: int = 0,
        halves: int = 1,
    ):
        self.data = data
        self.how = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
        tf.keras.utils.set_random_seed(seed)
        users, items = halves * data.users, halves * data.items
        self.model: BiasedMF = CAMF(users, items, data.contexts, deviation) if deviation else BiasedMF(users, items)
        self.start = self.model.get_weights()

    def draw(self, rng: np.random.Generator) -> Settings:
        return {
            "frequency_exponent": float(rng.choice([0.0, 0.5])),
            "l2_bias": _between(rng, 0.05, 2),
            "l2_factors": _between(rng, 0.2, 6),
            "l2_deviation": _between(rng, 0.2, 10),
        }

    def fit(self, train: Ratings, settings: Settings) -> None:
        self.model.set_weights(self.start)
        for name, value in settings.items():
            setattr(self.model, name, value)
        self.model.fit_quickly(self._inputs(train), train.rating, **self.how)
        self.range = float(train.rating.min()), float(train.rating.max())

    def _inputs(self, of: Ratings) -> dict[str, np.ndarray]:
        used = by_dimension(of.contexts, of.conditions) if self.model.contexts else {}
        return {name: values.astype(np.int32) for name, values in ({"user": of.user, "item": of.item} | used).items()}

    def predict(self, of: Ratings) -> np.ndarray:
        inputs = {name: tf.constant(values) for name, values in self._inputs(of).items()}
        return self.model.predict_rating(inputs, clip=self.range).numpy()

    def scores(self, user: np.ndarray, conditions: np.ndarray, items: int) -> np.ndarray:
        query = {"user": user, **by_dimension(self.data.contexts, conditions)}
        query = {name: tf.constant(values, tf.int32) for name, values in query.items()}
        return self.model.score_items(query).numpy()[:, :items]


class SplitFactorization(Factorization):
    """`BiasedMF` behind a split of items, users or both by context: half `h` of row r is row r + h·R."""

    def __init__(self, data: Ratings, side: str, **arguments: Any):
        super().__init__(data, halves=2, **arguments)
        self.sides = SplitByContextConfig(side=side).sides

    def draw(self, rng: np.random.Generator) -> Settings:
        return {
            **super().draw(rng),
            "alpha": _between(rng, 1e-3, 0.3),
            "min_ratings": int(rng.choice([3, 5, 10, 20])),
            "criterion": str(rng.choice(["t", "z", "information_gain"])),
        }

    def fit(self, train: Ratings, settings: Settings) -> None:
        own = {name: value for name, value in settings.items() if name in SplitByContextConfig.model_fields}
        config = SplitByContextConfig(**own)
        self.splits: dict[str, Splits] = {
            side: best_splits(getattr(train, side), train.rating, train.conditions, config) for side in self.sides
        }
        super().fit(self._split(train), {name: value for name, value in settings.items() if name not in own})

    def _split(self, of: Ratings) -> Ratings:
        rows: dict[str, Any] = {"item": of.item, "user": of.user}
        sizes = {"item": of.items, "user": of.users}
        for side, splits in self.splits.items():
            rows[side] = rows[side] + sizes[side] * splits.halves(rows[side], of.conditions)[1]
        return replace(of, **rows)

    def predict(self, of: Ratings) -> np.ndarray:
        return super().predict(self._split(of))

    def scores(self, user: np.ndarray, conditions: np.ndarray, items: int) -> np.ndarray:
        queries = len(user)
        item = np.tile(np.arange(items), queries)
        every: dict[str, Any] = {"user": np.repeat(user, items), "item": item}
        every["conditions"] = np.repeat(conditions, items, axis=0)
        split = self._split(replace(self.data, **every))
        own = super().scores(split.user[::items], conditions, 2 * items)
        return np.take_along_axis(own, split.item.reshape(queries, items), axis=1)


@dataclass
class PostFiltered(Method):
    """A `Factorization` whose order is weighted by P(item | user, context); it predicts what that predicts."""

    base: Factorization
    threshold: float
    predicts: bool = field(default=False, init=False)

    def draw(self, rng: np.random.Generator) -> Settings:
        return self.base.draw(rng)

    def fit(self, train: Ratings, settings: Settings) -> None:
        self.base.fit(train, settings)
        liked = train.rows(train.rating >= self.threshold)
        data = self.base.data
        self.layer = PostFilter(data.users, data.items + 1, data.items, data.contexts)
        watched = {"user": liked.user, "item": liked.item + 1, **by_dimension(data.contexts, liked.conditions)}
        self.layer.adapt(watched, np.eye(data.items + 1, data.items, k=-1))  # each item is an attribute of its own

    def predict(self, of: Ratings) -> np.ndarray:
        return self.base.predict(of)

    def scores(self, user: np.ndarray, conditions: np.ndarray, items: int) -> np.ndarray:
        query = {"user": user, **by_dimension(self.base.data.contexts, conditions)}
        query = {name: tf.constant(values, tf.int32) for name, values in query.items()}
        every = tf.tile(tf.range(1, items + 1)[tf.newaxis], [len(user), 1])
        ranked, scores = self.layer(query, every, tf.constant(self.base.scores(user, conditions, items)))
        found = np.empty((len(user), items), np.float32)
        np.put_along_axis(found, ranked.numpy() - 1, scores.numpy(), axis=1)
        return found


class ContextTwoTower(Method):
    """`TwoTower` of the user and the conditions, over all items, trained on high ratings; it predicts no rating.

    Settings are chosen by RMSE, so it has none to choose.

    Args:
      data: what the experiment is about.
      threshold: the lowest high rating.
      epochs: over the high ratings.
      batch_size: rows a step.
      seed: of the initial weights and of the order of the rows.
    """

    predicts = False

    def __init__(self, data: Ratings, threshold: float, epochs: int = 60, batch_size: int = 1024, seed: int = 0):
        self.threshold, self.names = threshold, [f"context_{name}" for name in data.contexts]
        self.how = {"epochs": epochs, "batch_size": batch_size}
        self.seed = seed
        tf.keras.utils.set_random_seed(seed)
        sizes = {name: size + FIRST_ID for name, size in zip(self.names, data.contexts.values(), strict=True)}
        rows = data.items + FIRST_ID, data.users + FIRST_ID
        self.model = TwoTower(*rows, embedding_dim=32, history_length=1, softmax="full", categories=sizes)
        optimizer = tf.keras.optimizers.Adagrad(0.1)
        optimizer.build(self.model.trainable_variables)
        self.model.compile(optimizer)
        self.variables = [*self.model.variables, *optimizer.variables]
        self.start = [variable.numpy() for variable in self.variables]

    def fit(self, train: Ratings, settings: Settings) -> None:
        for variable, value in zip(self.variables, self.start, strict=True):
            variable.assign(value)
        liked = train.rows(train.rating >= self.threshold)
        tf.keras.utils.set_random_seed(self.seed)
        x = {**self._query(liked.user, liked.conditions), "label": tf.constant(liked.item + FIRST_ID, tf.int32)}
        self.model.fit(x, **self.how, verbose=0)

    def _query(self, user: np.ndarray, conditions: np.ndarray) -> dict[str, tf.Tensor]:
        rows = np.where(conditions > 0, conditions + FIRST_ID - 1, 0)
        found = {"user": user + FIRST_ID, **{name: rows[:, j] for j, name in enumerate(self.names)}}
        found["history"] = np.zeros((len(user), 1))
        return {name: tf.constant(values, tf.int32) for name, values in found.items()}

    def scores(self, user: np.ndarray, conditions: np.ndarray, items: int) -> np.ndarray:
        return self.model.score_items(self._query(user, conditions)).numpy()[:, FIRST_ID:]


def methods(data: Ratings, threshold: float, **arguments: Any) -> dict[str, Method]:
    """By name, all of them; `arguments` are those of `Factorization`."""
    plain = Factorization(data, **arguments)
    return {
        "popularity": Popularity(),
        "item_average": ItemAverage(),
        "biased_mf": plain,
        **{f"camf_{name.lower()}": Factorization(data, name, **arguments) for name in DEVIATIONS},
        **{f"{side}_splitting": SplitFactorization(data, side, **arguments) for side in ("item", "user", "both")},
        "post_filter": PostFiltered(plain, threshold),
        "two_tower": ContextTwoTower(data, threshold, **arguments),
    }


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
