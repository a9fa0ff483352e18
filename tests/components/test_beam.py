"""Both engines make the same artifacts; what workers leave is whole; and what Beam refuses is one line."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_cases import refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components._analysis import Quantiles
from shortlist.components._config import parse
from shortlist.components._engine import ROW, Analyse, Each, Engine, EngineConfig, Rows, Write, engine_of
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


def described(
    workdir: Path, engine: Engine, data: dict[str, Any], words: int = 50, **split: Any
) -> dict[str, Artifact]:
    """The steps up to Transform."""
    p = Pipeline(workdir, engine=engine)
    examples = p.add(ExampleGen(parse(DataConfig, data, "data")))
    p.add(StatisticsGen(), examples)
    transform = TransformConfig(query_words=words, min_count=2, top=300)
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
def test_artifacts_are_the_same_on_movielens(data: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    given: dict[str, Any] = {"source": data}
    if data != "demo":
        given |= {"archive_dir": request.getfixturevalue("archive_dir"), "data_dir": tmp_path / "tfds"}
    here = described(tmp_path / "here", Engine(), given)
    there = described(tmp_path / "there", beam(30_000), given)
    assert_same(here, there)
    assert not list((tmp_path / "there").rglob(".beam*"))
    assert there["Transform"].lineage["engine"]["name"] == "beam"


def adversarial(seed: int, rows: int, giant: float, ids: list[str]) -> pa.Table:
    """A log with one giant user, a few items that are most of it, ids of any script, nulls and repeated rows."""
    rng = np.random.default_rng(seed)
    users = np.where(rng.random(rows) < giant, 0, rng.integers(0, max(rows // 8, 1), rows))
    items = np.minimum(rng.zipf(1.3, rows), 500)

    def some(values: Any, share: float) -> pa.Array:
        return pa.array(values, mask=rng.random(rows) < share)

    name = lambda prefix, number: f"{ids[number % len(ids)]}{prefix}{number}"  # noqa: E731
    log = pa.table(
        {
            "user": [name("ü", u) for u in users],
            "item": [name("片", i) for i in items],
            "timestamp": rng.integers(0, 60, rows) * 1000 + 1_600_000_000,
            "rating": some(rng.choice([0.5, 1.0, 3.7, 5.0], rows).astype(np.float32), 0.3),
            "watch_time": some(rng.gamma(0.2, 300, rows).astype(np.float32) * np.float32(1e-20), 0.2),
            "query": some(rng.choice(["war  film", "Ünïcode ñ", "", "дом"], rows), 0.5),
            "context_place": some(rng.choice(["home", "élève", "a\nb"], rows), 0.2),
            "mixed": some(rng.standard_normal(rows) * 10.0 ** rng.integers(-300, 300, rows), 0.1),
            "flag": some(rng.random(rows) < 0.5, 0.5),
        }
    )
    return log.take(pa.array(rng.integers(0, rows, rows)))


@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(100, 600),
    giant=st.sampled_from([0.0, 0.9]),
    ids=st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp")), max_size=4), min_size=1),
    batch=st.integers(50, 300),
)
def test_artifacts_are_the_same_on_what_is_made_to_break_them(
    seed: int, rows: int, giant: float, ids: list[str], batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("adversarial")
    log = folder / "log.parquet"
    pq.write_table(adversarial(seed, rows, giant, ids), log, row_group_size=batch)
    given = {"source": f"parquet:{log}"}
    here = described(folder / "here", Engine(), given, strategy="kfold")
    assert_same(here, described(folder / "there", beam(batch), given, strategy="kfold"))
    assert_same(here, described(folder / "batches", Engine(EngineConfig(batch=batch)), given, strategy="kfold"))


def test_artifacts_are_the_same_by_processes(tmp_path: Path) -> None:
    pq.write_table(adversarial(0, 600, 0.5, ["a"]), tmp_path / "log.parquet")
    given = {"source": f"parquet:{tmp_path / 'log.parquet'}"}
    here = described(tmp_path / "here", Engine(EngineConfig(batch=200)), given, 0, strategy="kfold")
    p = Pipeline(tmp_path / "there", engine=beam(200, *WORKERS))
    p.add(StatisticsGen(), p.given("ExampleGen", here["ExampleGen"]))
    p.add(Transform(TransformConfig(query_words=0, min_count=2, top=300)), p.given("Splitter", here["Splitter"]))
    assert_same(here, p.run())


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=400), st.integers(5, 60))
def test_quantiles_lie_within_the_stated_error(tmp_path: Path, values: list[float], batch: int) -> None:
    """With states so small that all of them are cut: ranks are wrong by less than n (1 + log2(n / level)) / level."""
    table = pa.table({"x": values})
    analysis = Quantiles("x", exact=8, level=8)
    (found,) = beam(batch).run(tmp_path, Analyse(analysis, [Rows(table)]))
    finite = np.sort([v for v in values if np.isfinite(v)])
    assert found.count == len(finite)
    shares = np.linspace(0, 1, 9)
    bound = 1 + len(finite) * (1 + max(np.log2(max(len(finite), 1) / 8), 0)) / 8
    for share, value in zip(shares, found.quantiles(shares), strict=False):
        low, high = np.searchsorted(finite, value, "left"), np.searchsorted(finite, value, "right")
        wanted = share * (len(finite) - 1)
        assert low - 1 - bound <= wanted <= high + bound


@dataclass(frozen=True)
class Failing:
    """Raises the first `times` that it is asked for each number, and counts in files."""

    folder: Path
    times: int

    def __call__(self, what: Any) -> Any:
        number = what if isinstance(what, int) else what["row of the source"][0].as_py()
        tried = len(list(self.folder.glob(f"{number}-*")))
        (self.folder / f"{number}-{tried}").touch()
        if tried < self.times:
            raise RuntimeError("the machine is gone")
        return number if isinstance(what, int) else what.drop_columns([ROW])


def test_what_fails_is_done_again_and_the_artifact_is_whole(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(90)})
    jobs = [
        Write(Rows(table, numbered=True), tmp_path / "x.parquet", Failing(tmp_path, 1)),
        Each([1000, 1001], Failing(tmp_path, 1)),
    ]
    assert beam(30, *RETRYING).run(tmp_path, *jobs) == [90, [1000, 1001]]
    assert pq.read_table(tmp_path / "x.parquet").equals(table)
    tried = {path.name for path in tmp_path.glob("[0-9]*-*")}
    assert tried >= {f"{number}-{again}" for number in (0, 30, 60, 1000, 1001) for again in range(2)}


def test_what_fails_for_good_leaves_no_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some pieces are done then; the same command goes on when what failed is mended."""
    pq.write_table(pa.table({"user": list("aabbcc"), "item": list("xyxyxy")}), tmp_path / "log.parquet")

    def run(engine: Engine) -> Artifact:
        pipeline = Pipeline(tmp_path / "run", engine=engine)
        pipeline.add(ExampleGen(DataConfig(source=f"parquet:{tmp_path / 'log.parquet'}")))
        return pipeline.run()["ExampleGen"]

    with monkeypatch.context() as broken:
        broken.setattr("shortlist.components.example_gen.duplicate_rows", failing)
        for engine in (beam(2), beam(2, *RETRYING)):
            with pytest.raises(ShortlistError, match="gave up: the machine is gone") as error:
                run(engine)
            assert "\n" not in str(error.value)
            assert list((tmp_path / "run").rglob("interactions.parquet"))
            assert not list((tmp_path / "run").rglob(LINEAGE))
    assert pq.read_table(run(beam(2)) / "interactions.parquet").num_rows == 6
    assert not list((tmp_path / "run").rglob("*.partial"))


def failing(table: pa.Table) -> Any:
    raise RuntimeError("the machine is gone")


def test_a_refusal_of_a_worker_is_that_of_the_local_engine(tmp_path: Path) -> None:
    times = pa.array([10, 20, 30, 4_999_999_999, 5_999_999_999])
    log = {"user": ["a"] * 5, "item": ["x"] * 5, "timestamp": times}
    pq.write_table(pa.table(log), tmp_path / "log.parquet", row_group_size=2)
    messages = []
    for name, engine in (("here", Engine()), ("there", beam(2))):
        pipeline = Pipeline(tmp_path / name, engine=engine)
        pipeline.add(ExampleGen(DataConfig(source=f"parquet:{tmp_path / 'log.parquet'}")))
        with pytest.raises(ShortlistError) as error:
            pipeline.run()
        messages.append(str(error.value))
    assert "data row 4" in messages[0]
    assert set(messages) == {messages[0]}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--beam-runner=NoSuchRunner"], "`--beam-runner` must be one of"),
        (["--beam-runner=no.such.Runner"], "`--beam-runner` cannot be loaded"),
        (["--beam-direct_num_worker=2"], "Did you mean `--beam-direct_num_workers`?"),
        (["--beam-direct_num_workers=two"], "argument --beam-direct_num_workers: invalid int value: 'two'"),
        (["--beam-runner=DataflowRunner"], "DataflowRunner refuses its flags"),
        (["--beam-runner"], "argument --beam-runner: expected one argument"),
    ],
)
def test_flags_that_beam_refuses(flags: list[str], said: str, tmp_path: Path) -> None:
    line = refused("run", "--data", "demo", "--workdir", tmp_path / "run", "--engine", "beam", *flags)
    assert said in line
    assert not (tmp_path / "run").exists()


def test_beam_that_is_not_installed_and_engines_that_there_are_not(tmp_path: Path, monkeypatch: Any) -> None:
    folder = ["--workdir", tmp_path / "run"]
    assert "Input should be 'local' or 'beam'" in refused("run", *folder, "--engine", "spark")
    assert "give --engine beam" in refused("run", *folder, "--beam-runner=FlinkRunner")
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert refused("run", *folder, "--engine", "beam") == (
        "`--engine beam` needs Apache Beam. Install it: pip install 'shortlist[beam]'."
    )


def test_flags_of_portable_runners_are_theirs_to_know() -> None:
    from shortlist.components._beam_flags import checked

    flags, runner = checked(["runner=FlinkRunner", "flink_master=localhost:8081", "a_flag_of_the_job_server=1"])
    assert runner == "FlinkRunner"
    assert flags[2] == "--a_flag_of_the_job_server=1"
