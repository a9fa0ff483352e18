"""Models inside models: how one that builds on others keeps them, so that it needs nothing but its own file."""

import json
from typing import Any

import tensorflow as tf

from shortlist.models._checks import require


def described(model: tf.keras.Model) -> str:
    """A model as text, but for its weights and its optimizer: a constructor's argument that survives any config."""
    made = tf.keras.utils.serialize_keras_object(model)
    made.pop("compile_config", None)
    return json.dumps(made, sort_keys=True)


def restored(name: str, text: str) -> tf.keras.Model:
    """The model that `described` wrote, built, with weights of its own, which no training changes.

    Raises:
      ShortlistError: for any other text; `name` is the argument that it came from.
    """
    try:
        model = tf.keras.utils.deserialize_keras_object(json.loads(text))
    except (TypeError, ValueError) as error:
        model = error
    rule = f"`{name}` must be what `described` makes of a fitted retriever."
    fits = isinstance(model, tf.keras.Model) and model.built and hasattr(model, "score_items")
    require(fits, rule, **{name: text if isinstance(text, str) and len(text) < 60 else f"{str(text)[:60]}…"})
    model.trainable = False
    return model


def copy_weights(name: str, source: tf.keras.Model, target: tf.keras.Model) -> None:
    """Gives `target` the weights of `source`, which `name` is called.

    Raises:
      ShortlistError: if they are not the same model.
    """
    given, wanted = ([tuple(w.shape) for w in model.weights] for model in (source, target))
    rule = f"`{name}` must be the model that was described."
    require(type(source) is type(target) and given == wanted, rule, **{name: type(source).__name__, "shapes": given})
    target.set_weights(source.get_weights())


def finite(scores: tf.Tensor) -> tf.Tensor:
    """Scores float `[B, I]` with what is left out (−∞) as low as the lowest that is not; all 0 where nothing is in."""
    out = tf.math.is_inf(scores)
    low = tf.reduce_min(tf.where(out, scores.dtype.max, scores), axis=1, keepdims=True)
    return tf.where(out, tf.where(low < scores.dtype.max, low, 0), scores)


def vectors_of(model: tf.keras.Model) -> Any:
    """The item vectors of a model, or None of one whose score is not a dot product."""
    return model.item_vectors() if hasattr(model, "item_vectors") else None
