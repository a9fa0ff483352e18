"""The models of TF Serving's documentation, small enough to be saved within a test."""

from pathlib import Path

import tensorflow as tf

FLOATS = tf.TensorSpec([None], tf.float32, "x")


class Half(tf.Module):
    """The models of TF Serving's documentation, and signatures that fail or take their time."""

    def __init__(self, plus: float = 3.0):
        super().__init__()
        self.plus = tf.Variable(plus)

    @tf.function(input_signature=[FLOATS])
    def half(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x / 2 + self.plus}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, "tag"),
            tf.TensorSpec([None, 5], tf.int64, "signal"),
            tf.TensorSpec([None, 2, 2], tf.float32, "sensor"),
        ]
    )
    def named(self, tag: tf.Tensor, signal: tf.Tensor, sensor: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"tag": tag, "total": tf.reduce_sum(signal, 1), "sensor": sensor, "tag_bytes": tag}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def echo(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"text_bytes": text}

    @tf.function(input_signature=[FLOATS])
    def refuse(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_less(x, 1.0, "`x` must be below 1.")]):
            return {"y": tf.identity(x)}

    @tf.function(input_signature=[FLOATS])
    def slow(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        passes = tf.cast(x[0], tf.int32)
        value = tf.while_loop(lambda n, _: n < passes, lambda n, v: (n + 1, tf.sin(v)), (0, tf.ones([256])))[1]
        return {"y": value[:1]}

    def save(self, folder: Path) -> Path:
        own = {name: getattr(self, name) for name in ("named", "echo", "refuse", "slow")}
        tf.saved_model.save(self, str(folder), signatures={"serving_default": self.half, **own})
        return folder
