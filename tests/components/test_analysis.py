"""Computations whose parts merge: in whatever pieces and order, the same as in one go; how wrong quantiles can be."""

from collections import Counter
from functools import reduce

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.components._analysis import Counts, Quantiles, Together, analyse
from shortlist.components._batches import smallest
from shortlist.components._categories import vocabulary

texts = st.lists(st.sampled_from(["a", "ä", "ключ", "🎬", "", "b\nc", None]), max_size=12)
numbers = st.lists(st.integers(-(10**12), 10**12) | st.none(), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_counts_merge_in_any_order(pieces: list[list[str | None]], random) -> None:
    tables = [pa.table({"x": pa.array(piece, pa.string())}) for piece in pieces]
    everything = [value for piece in pieces for value in piece if value is not None]
    counts = Counts("x")
    found = counts.result(analyse(counts, tables)).to_pydict()
    assert list(zip(found["value"], found["count"], strict=True)) == list(Counter(everything).items())

    plain = Counts("x", text=True)
    states = [plain.add(plain.start(), table) for table in tables]
    random.shuffle(states)
    merged = plain.result(reduce(plain.merge, states))
    lines = Counter(value.replace("\n", " ") for value in everything if value)
    assert dict(zip(*merged.to_pydict().values(), strict=True)) == lines
    ordered = vocabulary(merged)
    assert ordered.equals(vocabulary(plain.result(analyse(plain, tables))))
    assert vocabulary(merged, min_count=2).to_pylist() == [v for v in ordered.to_pylist() if lines[v] > 1]
    assert vocabulary(merged, top=2).equals(ordered[:2])


def test_many_counts_are_added_up_before_the_end() -> None:
    counts, state = Counts("x"), Counts("x").start()
    for n in range(40):
        state = counts.add(state, pa.table({"x": list(map(str, range(5000 * n, 5000 * n + 10_000)))}))
        assert sum(map(len, state)) < 2 * 200_000
    assert len(state) < 30
    found = dict(zip(*counts.result(state).to_pydict().values(), strict=True))
    assert len(found) == 205_000
    assert (found["0"], found["5000"], found["204999"]) == (1, 2, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_quantiles_of_few_numbers_are_exact(pieces: list[list[int | None]], random) -> None:
    tables = [pa.table({"x": pa.array(piece, pa.int64())}) for piece in pieces]
    everything = [value for piece in pieces for value in piece if value is not None]
    both = Together({"x": Quantiles("x"), "n": Counts("x")})
    states = [both.add(both.start(), table) for table in tables]
    random.shuffle(states)
    found = both.result(reduce(both.merge, states))["x"]
    shares = np.linspace(0, 1, 7)
    assert (found.count, found.minimum, found.maximum) == (
        len(everything),
        min(everything, default=None),
        max(everything, default=None),
    )
    np.testing.assert_array_equal(found.quantiles(shares), np.quantile(everything, shares) if everything else [])


@pytest.mark.parametrize("order", ["random", "ascending", "descending", "alternating"])
def test_quantiles_of_many_numbers_err_by_less_than_is_stated(order: str) -> None:
    n, level = 50_000, 512
    values = np.arange(n, dtype=np.float64)  # so that a value is its rank
    if order == "random":
        values = np.random.default_rng(0).permutation(values)
    elif order != "ascending":
        values = (
            values[::-1] if order == "descending" else np.column_stack([values[: n // 2], values[n // 2 :]]).ravel()
        )
    analysis = Quantiles("x", exact=2048, level=level)
    pieces = [pa.table({"x": piece}) for piece in np.array_split(values, 23)]
    one_by_one = analyse(analysis, pieces)
    halves = analysis.merge(analyse(analysis, pieces[:9]), analyse(analysis, pieces[9:]))
    shares = np.linspace(0, 1, 101)
    for state in (one_by_one, halves):
        assert sum(len(part) for part in state.levels for part in part) < 10 * level
        error = np.abs(np.array(state.quantiles(shares)) - shares * (n - 1)) / n
        assert 0 < error.max() < (1 + np.log2(n / level)) / level
        assert error[0] == error[-1] == 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(-(2**40), 2**40) | st.integers(-3, 3), max_size=9), min_size=1, max_size=4))
def test_the_smallest_numbers_are_found_as_by_sorting(pieces: list[list[int]]) -> None:
    line = sorted(value for piece in pieces for value in piece)
    if line:
        ranks = [0, len(line) // 2, len(line) - 1]
        assert smallest(lambda: [np.array(p, np.int64) for p in pieces], ranks) == [line[rank] for rank in ranks]
