from fractions import Fraction
from pathlib import Path

import numpy as np
import oracles
import pyarrow as pa
import pytest
from data_cases import write
from hypothesis import given
from hypothesis import strategies as st

from shortlist.components._column_statistics import SHARES, Moments, moments
from shortlist.components._engine import Engine
from shortlist.components.example_gen import DataConfig, ExampleGen
from shortlist.components.pipeline import Pipeline
from shortlist.components.statistics_gen import StatisticsGen, describing, matrix_jobs, matrix_of

LOG = {
    "user": ["u1", "u1", "u1", "u2"],
    "item": ["a", "b", "a", "a"],
    "timestamp": [10, 10, 30, 10],
    "rating": [1.0, 2.0, 3.0, None],
}


def matrix(table):
    about = {"rows": len(table), "columns": described(table)}
    return matrix_of(about, *Engine().run(Path(), *matrix_jobs(table)))


def described(table):
    analysis = describing(table.schema)
    return analysis.result(analysis.add(analysis.start(), table))


@pytest.fixture
def statistics(tmp_path):
    items = write(tmp_path / "items.parquet", {"item": ["a", "c"], "genres": [["Drama", "War"], ["Drama"]]})
    pipeline = Pipeline(tmp_path / "run")
    source = f"parquet:{write(tmp_path / 'log.parquet', LOG)}"
    pipeline.add(StatisticsGen(), pipeline.add(ExampleGen(DataConfig(source=source, items=items))))
    return pipeline.run()["StatisticsGen"].read_json("statistics.json")


def test_columns_by_hand(statistics):
    columns = statistics["tables"]["interactions"]["columns"]
    assert columns["user"] == {
        "type": "string",
        "nulls": 0,
        "distinct": 2,
        "most_frequent": [["u1", 3], ["u2", 1]],
    }
    assert columns["rating"] == {
        "type": "float",
        "nulls": 1,
        "not_finite": 0,
        "minimum": 1.0,
        "maximum": 3.0,
        "mean": 2.0,
        "standard_deviation": pytest.approx((2 / 3) ** 0.5),
        "quantiles": {
            "0.01": pytest.approx(1.02),
            "0.05": pytest.approx(1.1),
            "0.25": 1.5,
            "0.5": 2.0,
            "0.75": 2.5,
            "0.95": pytest.approx(2.9),
            "0.99": pytest.approx(2.98),
        },
        "distinct": 3,
        "most_frequent": [[1.0, 1], [2.0, 1], [3.0, 1]],
    }
    assert columns["watch_time"]["nulls"] == 4
    assert columns["watch_time"]["mean"] is None
    assert statistics["tables"]["items"]["rows"] == 3
    genres = statistics["tables"]["items"]["columns"]["genres"]
    assert (genres["empty"], genres["values"], genres["most_frequent"]) == (1, 3, [["Drama", 2], ["War", 1]])


def test_matrix_by_hand(statistics):
    matrix = statistics["matrix"]
    assert matrix["rows"] == 4
    assert (matrix["users"], matrix["items"], matrix["catalogue"]) == (2, 2, 3)
    assert matrix["density"] == 3 / 4
    assert (matrix["first_timestamp"], matrix["last_timestamp"]) == (10, 30)
    assert matrix["tied"] == 2 / 4
    assert matrix["rows_per_user"]["mean"] == 2
    assert (matrix["rows_per_user"]["minimum"], matrix["rows_per_user"]["maximum"]) == (1, 3)
    assert matrix["rows_per_item"]["quantiles"]["0.5"] == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=40))
def test_the_matrix_agrees_with_numpy(rows):
    users, items, times = np.array(rows).T
    text = {"user": pa.array(users.astype(str), pa.string()), "item": pa.array(items.astype(str), pa.string())}
    found = matrix(pa.table({**text, "timestamp": times}))
    assert found["tied"] == pytest.approx(oracles.shared_timestamps(users, times))
    cells = len(np.unique(users)) * len(np.unique(items))
    assert found["density"] == pytest.approx(len(np.unique(np.stack([users, items]), axis=1).T) / cells)
    counts = np.unique(items, return_counts=True)[1]
    assert list(found["rows_per_item"]["quantiles"].values()) == pytest.approx(np.quantile(counts, SHARES))


def test_a_log_without_timestamps_has_no_ties():
    found = matrix(pa.table({"user": ["u"], "item": ["i"], "timestamp": pa.nulls(1, pa.int64())}))
    assert found["tied"] is None
    assert found["first_timestamp"] is None


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30), st.integers(0, 30))
def test_moments_are_those_of_fractions_however_the_numbers_are_cut(values, cut):
    """A sum in floating point depends on its order, and its squares can be past what it holds."""
    parts = [moments(np.array(part)) for part in (values[:cut], values[cut:]) if part]
    found = sum(parts, Moments())
    exact = [Fraction(v) for v in values]
    mean = sum(exact) / len(exact)
    variance = sum((v - mean) ** 2 for v in exact) / len(exact)
    assert found.mean == float(mean)
    assert abs(Fraction(found.standard_deviation) ** 2 - variance) <= variance / 10**14 + Fraction(1, 2**2000)
    assert found == moments(np.array(values[::-1]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([True, False, True]), {"distinct": 2, "most_frequent": [[True, 2], [False, 1]]}),
        (pa.array([1.0, np.nan, np.inf]), {"not_finite": 2, "mean": 1.0, "maximum": 1.0, "distinct": 1}),
        (pa.array([1, 2], pa.date32()), {"minimum": "1970-01-02", "maximum": "1970-01-03"}),
        (pa.array([{"a": 1}, None]), {"type": "struct<a: int64>", "nulls": 1}),
        (pa.array([b"x"]), {"type": "binary", "nulls": 0}),
        (pa.array([2**60 + 1]), {"distinct": 1, "most_frequent": [[2**60 + 1, 1]]}),
        (
            pa.array([f"{i:03}" for i in range(100)]),
            {"distinct": 100, "most_frequent": [[f"{i:03}", 1] for i in range(100)]},
        ),
        (
            pa.array([f"{i:03}" for i in range(101)]),
            {"distinct": 101, "most_frequent": [[f"{i:03}", 1] for i in range(20)]},
        ),
    ],
)
def test_further_columns_of_any_type(values, expected):
    found = described(pa.table({"column": values}))["column"]
    assert {key: found.get(key) for key in expected} == expected
