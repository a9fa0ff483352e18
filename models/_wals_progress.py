"""What a training of WALS leaves behind after each half-step, so that it can go on where it was interrupted."""

import json
from typing import Any

import tensorflow as tf

from shortlist.models._checks import require


class Progress:
    """The model's weights in a folder, with the number of half-steps they have had.

    TensorFlow writes a checkpoint beside the one before and then names it the latest, so a run that is killed at any
    moment leaves a whole one.

    Args:
      model: a built model.
      folder: where; None keeps nothing.

    Raises:
      ShortlistError: if the folder holds the checkpoint of a model with other settings or another shape.
    """

    def __init__(self, model: Any, folder: str | None):
        self.done = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.manager = None
        if folder is None:
            return
        settings = {name: value for name, value in model.get_config().items() if name != "name"}
        run = tf.Variable(json.dumps([settings, model.table_shape]), trainable=False)
        checkpoint = tf.train.Checkpoint(weights=list(model.variables), done=self.done, run=run)
        self.manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=1)
        if self.manager.latest_checkpoint:
            reader = tf.train.load_checkpoint(self.manager.latest_checkpoint)
            same = reader.get_tensor("run/.ATTRIBUTES/VARIABLE_VALUE").decode() == run.numpy().decode()
            rule = "`checkpoint_dir` must be empty, or of a run with the same settings and shape; give each its own."
            require(same, rule, checkpoint_dir=str(folder))
            self.manager.restore_or_initialize()

    @property
    def half_steps(self) -> int:
        """Those that are done."""
        return int(self.done.numpy())

    def finish(self, half_steps: int) -> None:
        """Notes that so many half-steps are done."""
        self.done.assign(half_steps)
        if self.manager is not None:
            self.manager.save()
