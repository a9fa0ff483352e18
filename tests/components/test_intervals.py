"""Intervals of many columns against one at a time, p-values against all exchanges of signs, and Holm's rule."""

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.components import _intervals
from shortlist.components.metrics import bootstrap_mean, bootstrap_means, holm, paired_bootstrap, sign_flip_p


@pytest.mark.parametrize("seed", [0, 7])
def test_many_columns_equal_the_gathered_draws_of_each(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((83, 9)) * 10.0 ** rng.integers(-3, 3, 9)
    values[rng.random(83) < 0.3, :4] = np.nan  # these four share their users
    values[5, 4] = np.nan
    values[:, 5] = 0.25
    values[1:, 6] = np.nan
    values[:, 7] = np.nan
    monkeypatch.setattr(_intervals, "BLOCK", 1000)
    got = np.stack(bootstrap_means(values, 501, seed, 0.9), axis=1)
    for column in range(9):
        if column == 7:
            assert np.isnan(got[7]).all()
            continue
        twin = oracles.bootstrap_mean(values[:, column], 501, seed, 0.9)
        np.testing.assert_allclose(got[column], twin, rtol=1e-12, err_msg=str(column))
        np.testing.assert_allclose(bootstrap_mean(values[:, column], 501, seed, 0.9), twin, rtol=1e-12)


def test_no_users_and_no_columns() -> None:
    assert np.isnan(bootstrap_means(np.zeros((0, 2)), 10)).all()
    assert np.shape(bootstrap_means(np.zeros((3, 0)), 10)) == (3, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.1, 0.2, 0.3, float("nan")]), min_size=1, max_size=7))
def test_p_is_the_share_of_all_exchanges_of_signs(values: list[float]) -> None:
    both = np.array([values, [-v for v in values]]).T
    expected = np.nan if np.isnan(values).all() else oracles.sign_flip_p(values)
    np.testing.assert_allclose(sign_flip_p(both), [expected, expected])


def test_p_by_hand() -> None:
    same, opposed = [1.0, 1, 1, 1], [1.0, -1, 1, -1]
    np.testing.assert_allclose(sign_flip_p(np.array([same, opposed, [0.0] * 4]).T), [2 / 16, 1, 1])


def test_random_throws_come_near_the_exact_p_and_are_never_0() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal([0.0, 0.3, 3.0], 1, (11, 3))
    exact = [oracles.sign_flip_p(column) for column in values.T]
    thrown = sign_flip_p(values, samples=2000)  # of 2,048
    np.testing.assert_allclose(thrown, exact, atol=0.03)
    far = sign_flip_p(np.full((70, 1), 0.5), samples=99)
    assert far[0] == 1 / 100
    assert sign_flip_p(values, 500, seed=1).tolist() != sign_flip_p(values, 500, seed=2).tolist()


def test_p_is_uniform_where_nothing_differs() -> None:
    values = np.random.default_rng(3).normal(size=(60, 2000))
    p = sign_flip_p(values, samples=1999)
    shares = [(p <= level).mean() for level in (0.05, 0.2, 0.5)]
    np.testing.assert_allclose(shares, [0.05, 0.2, 0.5], atol=0.035)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03, 0.5])), [0.09, 0.04, 0.09, 0.5])
    np.testing.assert_allclose(holm(np.array([0.6, np.nan, 0.02])), [0.6, np.nan, 0.04])
    assert holm(np.array([])).size == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_equals_its_definition(p: list[float]) -> None:
    corrected = holm(np.array(p))
    assert ((corrected >= np.array(p)) & (corrected <= 1)).all()
    by_rank = sorted(range(len(p)), key=lambda i: p[i])
    expected = oracles.holm(
        [p[i] + n * 1e-15 for n, i in enumerate(by_rank)]
    )  # ties told apart, as the rule orders them
    np.testing.assert_allclose(corrected[by_rank], expected, atol=1e-12)


def test_the_interval_of_a_difference_is_that_of_its_column() -> None:
    a, b = np.random.default_rng(5).random((2, 40))
    assert paired_bootstrap(a, b, 200, 3) == pytest.approx(oracles.bootstrap_mean(a - b, 200, 3), rel=1e-12)
