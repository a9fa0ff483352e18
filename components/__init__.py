"""TFX-style components: artifacts in, artifacts out. No training loop lives here.

A component is found under its own name, `shortlist.components.Splitter`, and read in the file of that name
(`splitter.py`). Nothing is imported before it is asked for.
"""

import importlib
import re
from typing import Any

if __name__ != "shortlist.components":
    raise ImportError(
        "Import this package as `shortlist.components` (run `pip install -e .` first). Received: `components`."
    )

__all__ = [
    "CandidateGenerator",
    "ContextSplitter",
    "Evaluator",
    "ExampleGen",
    "ExampleValidator",
    "Exporter",
    "InfraValidator",
    "Pipeline",
    "Pusher",
    "RefreshGen",
    "Reporter",
    "RetrievalIndex",
    "SchemaGen",
    "Splitter",
    "StatisticsGen",
    "Trainer",
    "Transform",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module 'shortlist.components' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
