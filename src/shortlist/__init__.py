"""Shortlist: two-stage recommenders for TensorFlow. Retrieve a shortlist, rank it, serve it.

Importing this package is cheap: TensorFlow is loaded by `shortlist.models`, not here. What must happen here is the
choice of Keras: TensorFlow Recommenders needs Keras 2 (`tf_keras`), and `tf.keras` is bound once a process, the first
time it is touched (docs/decisions/0002-keras-2.md).
"""

import importlib
import os
import sys
from types import ModuleType

__version__ = "0.1.0"

_SUBPACKAGES = ("components", "models", "trainers")


class ShortlistError(ValueError):
    """Input that cannot be used. The message is one line: what is wrong, what was received, and the remedy."""


def _choose_keras_2() -> None:
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or not hasattr(tensorflow, "keras"):
        return
    module = tensorflow.keras.Model.__module__
    if not module.startswith("tf_keras"):
        raise ImportError(
            "Shortlist needs Keras 2 as `tf.keras`, but Keras 3 was loaded first. Import shortlist before the first "
            "use of `tf.keras`, or set the environment variable TF_USE_LEGACY_KERAS=1 before Python starts. "
            f"Received: tf.keras.Model from {module}."
        )


_choose_keras_2()


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"shortlist.{name}")
    raise AttributeError(f"module 'shortlist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBPACKAGES])
