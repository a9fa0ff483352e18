"""What all tests share: the Keras choice first, one place for the shared archive, quiet TensorFlow."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import hypothesis
import pytest

import shortlist  # noqa: F401  chooses Keras 2 before any test touches tf.keras

# The same examples at every run of CI, so that a change is judged by what it changes; new ones everywhere else.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def archive_dir() -> Path:
    """The folder with the official MovieLens archive; the test is skipped where it is not there."""
    if not (SHARED / "ml-latest-small.zip").exists():
        pytest.skip("needs ml-latest-small.zip in ../shared/data")
    return SHARED
