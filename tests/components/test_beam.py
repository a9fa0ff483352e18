"""Both engines make the same artifacts; what workers leave is whole; and what Beam refuses is one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shortlist.components._config import parse
from shortlist.components._engine import Engine, EngineConfig, engine_of
from shortlist.components.artifacts import LINEAGE, Artifact
from shortlist.components.example_gen import DataConfig, ExampleGen
from shortlist.components.pipeline import Pipeline
from shortlist.components.splitter import SplitConfig, Splitter
from shortlist.components.statistics_gen import StatisticsGen
from shortlist.components.transform import Transform, TransformConfig

WORKERS = ("direct_running_mode=multi_processing", "direct_num_workers=2")
RETRYING = ("runner=BundleBasedDirectRunner",)  # does a bundle that fails four times


def beam(batch: int, *flags: str) -> Engine:
    return engine_of(EngineConfig(name="beam", batch=batch, beam=flags))


def content(artifact: Artifact) -> dict[str, Any]:
    """Every file of an artifact but its lineage: tables, arrays, or bytes."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in artifact.uri.rglob("*") if p.is_file() and p.name != LINEAGE):
        name = str(path.relative_to(artifact.uri))
        if path.suffix == ".parquet":
            found[name] = without_nan(pq.read_table(path))
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found[name] = {key: arrays[key].tolist() for key in arrays.files}
        else:
            found[name] = path.read_bytes()
    return found


def without_nan(table: pa.Table) -> dict[str, Any]:
    """The columns, those of floating numbers as bits: a NaN is one."""
    columns: dict[str, Any] = {"schema": table.schema}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_floating(column.type):
            columns[f"no {name}"] = column.is_null().combine_chunks()
            column = column.fill_null(0).to_numpy()
            column = pa.array(column.view(f"i{column.itemsize}"))
        columns[name] = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return columns


def described(workdir: Path, engine: Engine, data: dict[str, Any], **split: Any) -> dict[str, Artifact]:
    """The steps up to Transform."""
    p = Pipeline(workdir, engine=engine)
    examples = p.add(ExampleGen(parse(DataConfig, data, "data")))
    p.add(StatisticsGen(), examples)
    transform = TransformConfig(time_contexts=("daypart",), query_words=50)
    p.add(Transform(transform), p.add(Splitter(SplitConfig(**split)), examples))
    return p.run()


def assert_same(here: dict[str, Artifact], there: dict[str, Artifact]) -> None:
    assert here.keys() == there.keys()
    for step, artifact in here.items():
        assert artifact.fingerprint == there[step].fingerprint
        mine, theirs = content(artifact), content(there[step])
        assert mine.keys() == theirs.keys(), step
        for name, value in mine.items():
            assert value == theirs[name], f"{name} of {step}"


@pytest.mark.parametrize("data", ["demo", "tfds:movielens/latest-small"])
def test_artifacts_are_the_same_on_movielens(
    data: str, tmp_path: Path, request: pytest.FixtureRequest, tfds_home: Path
) -> None:
    given: dict[str, Any] = {"source": data}
    if data != "demo":
        given |= {"archive_dir": request.getfixturevalue("archive_dir"), "data_dir": tfds_home}
    here = described(tmp_path / "here", Engine(), given)
    there = described(tmp_path / "there", beam(30_000), given)
    assert_same(here, there)
    assert not list((tmp_path / "there").rglob(".beam*"))
    assert there["Transform"].lineage["engine"]["name"] == "beam"


@pytest.fixture
def tfds_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tfds")
