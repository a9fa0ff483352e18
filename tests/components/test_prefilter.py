"""Pre-filtering with a hierarchy, by hand."""

import pyarrow as pa
import pytest

from shortlist import ShortlistError
from shortlist.components.prefilter import prefilter

DAYS = ["sat", "sat", "sun", "mon", "tue", None]
HOURS = ["night", "noon", "night", "night", "noon", "night"]
WEEK = pa.table({"row": range(6), "context_day": DAYS, "context_hour": HOURS})
HIERARCHY = {"day": {"sat": "weekend", "sun": "weekend", "mon": "workday", "tue": "workday"}}


@pytest.mark.parametrize(
    ("context", "min_rows", "rows", "taken"),
    [
        ({"day": "sat"}, 2, [0, 1], {"day": "sat"}),
        ({"day": "sat"}, 3, [0, 1, 2], {"day": "weekend"}),
        ({"day": "sat"}, 4, [0, 1, 2, 3, 4, 5], {"day": None}),
        ({"day": "sat", "hour": "night"}, 1, [0], {"day": "sat", "hour": "night"}),
        ({"day": "sat", "hour": "night"}, 2, [0, 1], {"day": "sat", "hour": None}),  # as many as on a weekend's night
        ({"day": "sun", "hour": "night"}, 2, [0, 2], {"day": "weekend", "hour": "night"}),
        ({"day": "mon", "hour": "noon"}, 99, [0, 1, 2, 3, 4, 5], {"day": None, "hour": None}),
        ({"day": "holiday"}, 1, [0, 1, 2, 3, 4, 5], {"day": None}),
        ({}, 1, [0, 1, 2, 3, 4, 5], {}),
    ],
)
def test_prefilter_takes_the_nearest_context_with_enough_rows(
    context: dict[str, str], min_rows: int, rows: list[int], taken: dict[str, str | None]
) -> None:
    kept, condition = prefilter(WEEK, context, HIERARCHY, min_rows)
    assert (kept["row"].to_pylist(), condition) == (rows, taken)


def test_prefilter_refuses_what_it_cannot_know() -> None:
    with pytest.raises(ShortlistError) as error:
        prefilter(WEEK, {"mood": "sad"})
    assert str(error.value) == "`context` must name dimensions of the data. Received: mood; there are: day, hour."
    with pytest.raises(ShortlistError) as error:
        prefilter(WEEK, {"day": "a"}, {"day": {"a": "b", "b": "a"}})
    assert str(error.value) == (
        "`hierarchy.day` must lead from every condition to any. Received: a → b → a, which goes round."
    )
