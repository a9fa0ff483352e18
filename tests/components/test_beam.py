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
from shortlist.components._analysis import Counts, Quantiles
from shortlist.components._config import parse
from shortlist.components._engine import ROW, Analyse, Each, Engine, EngineConfig, Rows, Shuffle, Write, engine_of
from shortlist.components._tables import event_keys
from shortlist.components.artifacts import LINEAGE, Artifact
from shortlist.components.example_gen import Conform, DataConfig, ExampleGen, FirstMet, duplicate_rows
from shortlist.components.pipeline import Pipeline
from shortlist.components.splitter import SplitConfig, Splitter
from shortlist.components.statistics_gen import StatisticsGen, describing, matrix_jobs
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


def in_order(found: Any) -> Any:
    """Tables as dicts, counts by their values: those of buckets stand in another order."""
    if isinstance(found, pa.Table):
        return found.sort_by("value").to_pydict()
    if isinstance(found, dict):
        return {key: in_order(value) for key, value in found.items()}
    return [in_order(value) for value in found] if isinstance(found, list) else found


def test_jobs_of_every_kind_are_done_by_processes(tmp_path: Path) -> None:
    """One start of workers, for the jobs that the steps have."""
    log, rows = tmp_path / "log.parquet", tmp_path / "rows.parquet"
    pq.write_table(adversarial(0, 600, 0.5, ["a"]), log, row_group_size=200)
    conform = Conform("log", {}, {})
    Engine().run(tmp_path, Write(Rows(log, numbered=True), rows, conform, {"group": 100}))
    schema = pq.read_schema(rows)
    jobs = [
        Analyse(describing(schema), [Rows(rows)]),
        *matrix_jobs(rows),
        Analyse(FirstMet("item"), [Rows(rows, ["item"], True)]),
        Shuffle(Rows(rows, event_keys(schema.names), True), ("user", "item"), duplicate_rows),
        Write(Rows(log, numbered=True), tmp_path / "out.parquet", conform),
        Each([b"x", b"yy"], len),
    ]
    here = Engine(EngineConfig(batch=40)).run(tmp_path, *jobs)
    out = without_nan(pq.read_table(tmp_path / "out.parquet"))
    there = beam(40, *WORKERS).run(tmp_path, *jobs)
    assert len(here[5]) > 1  # buckets
    np.testing.assert_equal(in_order(there), in_order(here))
    assert without_nan(pq.read_table(tmp_path / "out.parquet")) == out


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


def once(folder: Path, what: str) -> None:
    """Raises the first time."""
    if not (folder / f"failed-{what}").exists():
        (folder / f"failed-{what}").touch()
        raise RuntimeError("the machine is gone")


@dataclass(frozen=True)
class FailingCounts(Counts):
    """Fails once when the second piece has been counted, and once when there is nothing left to be put together."""

    folder: Path = Path()

    def of(self, table: pa.Table) -> pa.Table:
        found = super().of(table)
        if 10 in table[ROW].to_pylist():
            once(self.folder, "counting")
        return found

    def reduce(self, state: list[pa.Table]) -> pa.Table:
        found = super().reduce(state)
        once(self.folder, "merging")
        return found


@dataclass(frozen=True)
class FailingWork:
    """How many rows there are; fails the first time."""

    folder: Path

    def __call__(self, table: pa.Table) -> int:
        once(self.folder, "working")
        return len(table)


def test_what_fails_is_done_again_and_the_artifact_is_whole(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(60)})
    jobs = [
        Write(Rows(table, numbered=True), tmp_path / "x.parquet", Failing(tmp_path, 1)),
        Each([1000], Failing(tmp_path, 1)),
    ]
    assert beam(30, *RETRYING).run(tmp_path, *jobs) == [60, [1000]]
    assert pq.read_table(tmp_path / "x.parquet").equals(table)
    tried = {path.name for path in tmp_path.glob("[0-9]*-*")}
    assert tried >= {f"{number}-{again}" for number in (0, 30, 1000) for again in range(2)}


def test_what_is_grouped_is_done_again_as_well(tmp_path: Path) -> None:
    """The parts of an attempt that failed are left out."""
    rows = Rows(pa.table({"x": np.arange(60) % 7}), numbered=True)
    jobs = [Analyse(FailingCounts("x", folder=tmp_path), [rows]), Shuffle(rows, ["x"], FailingWork(tmp_path))]
    counts, sizes = beam(10, *RETRYING).run(tmp_path, *jobs)
    assert dict(zip(*counts.to_pydict().values(), strict=True)) == {x: 9 if x < 4 else 8 for x in range(7)}
    assert sum(sizes) == 60
    assert len(list(tmp_path.glob("failed-*"))) == 3


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
