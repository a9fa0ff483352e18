"""Small files of interactions, and what ExampleGen makes of them."""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shortlist import ShortlistError
from shortlist.components._config import parse
from shortlist.components.artifacts import Artifact
from shortlist.components.example_gen import DataConfig, ExampleGen
from shortlist.components.pipeline import Pipeline


def write(path: Path, columns: dict) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def generate(tmp_path: Path, **config) -> Artifact:
    pipeline = Pipeline(tmp_path / "run")
    pipeline.add(ExampleGen(parse(DataConfig, config, "data")))
    return pipeline.run()["ExampleGen"]


def refuse(tmp_path: Path, **config) -> str:
    """The message of the refusal, checked to be one line that leaves no artifact behind."""
    with pytest.raises(ShortlistError) as error:
        generate(tmp_path, **config)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").rglob("lineage.json"))
    return str(error.value)


def table(artifact: Artifact, name: str) -> pa.Table:
    return pq.read_table(artifact / f"{name}.parquet")
