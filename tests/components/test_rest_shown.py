"""Values in errors, as TF Serving prints them."""

import math

import pytest

from shortlist.components._rest_shown import shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (-1.5, "-1.5"),
        (1e-5, "0.00001"),
        (1.5e-7, "1.5e-7"),
        (123456.75, "123456.75"),
        (1e20, "100000000000000000000.0"),
        (1e21, "1e21"),
        (-1.25e300, "-1.25e300"),
    ],
)
def test_a_number_in_an_error(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_value_in_an_error_is_cut() -> None:
    assert shown([1.0, 2e30, "é", [], {}, None, True]) == '[1.0, 2e30, "é", [], {}, null, true]'
    assert shown([1.0, math.nan, 2.0]) == "[1.0"  # there TF Serving's writer ends
    text = shown(list(range(10_000)))
    assert 256 <= len(text) <= 262
    assert text.startswith("[0, 1, 2")
