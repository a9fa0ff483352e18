"""What the tests of the served bundle share: it is made once."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The artifacts of a small pipeline up to the bundle, by step."""
    import serving_data

    return serving_data.build(tmp_path_factory.mktemp("served"))
