"""The zoo: every public class here is a `tf.keras.Model` recommender, one file a model.

A model is discovered by its file: `@register("name")` on the class makes it an attribute of `shortlist.models`.
Nothing is imported before it is asked for.
"""

import importlib
import pkgutil
from typing import Any

if __name__ != "shortlist.models":
    raise ImportError("Import this package as `shortlist.models` (run `pip install -e .` first). Received: `models`.")


def discover() -> dict[str, type]:
    """Imports every public module of the zoo and returns the registered classes by their registered name."""
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}")
    return dict(importlib.import_module(f"{__name__}._base").REGISTRY)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    for cls in discover().values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module 'shortlist.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["discover", *(cls.__name__ for cls in discover().values())])
