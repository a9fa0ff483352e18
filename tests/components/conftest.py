"""What the tests of the served bundle share: it is made once."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The artifacts of a small pipeline up to the bundle, by step."""
    import serving_data

    return serving_data.build(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def served_wals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same of a pipeline with WALS, as its trainer saves it, among the sources."""
    import serving_data

    return serving_data.build(tmp_path_factory.mktemp("served_wals"), quota={"item_knn": 6, "wals": 5})
