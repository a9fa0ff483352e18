import oracles
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components._tables import INTERACTIONS, conform, drop_duplicates, genres, numbers


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.sampled_from("xy"),
            st.sampled_from([1, 2, None]),
            st.sampled_from(["watch", "impression"]),
            st.sampled_from(["mon", "NA", None]),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_only_the_first_of_equal_rows_is_kept(rows):
    users, items, times, events, days = (list(column) for column in zip(*rows, strict=True))
    columns = {"user": users, "item": items, "timestamp": pa.array(times, pa.int64()), "event": events}
    columns |= {"context_day": pa.array(days, pa.string()), "row": list(range(len(rows)))}
    kept, dropped = drop_duplicates(conform(pa.table(columns), INTERACTIONS, "log"))
    expected = oracles.first_rows(rows)
    assert kept["row"].to_pylist() == expected
    assert dropped == len(rows) - len(expected)


@given(st.lists(st.none() | st.lists(st.sampled_from(["Drama", "War", "", "(no genres listed)", " War "]), max_size=4)))
def test_genres_from_lists_and_from_text_agree_with_a_loop(lists):
    expected = [[n.strip() for n in names or [] if n.strip() not in ("", "(no genres listed)")] for names in lists]
    given_lists = pa.chunked_array([pa.array(lists, pa.list_(pa.string()))])
    assert genres(given_lists, "genres", "items").to_pylist() == expected
    text = pa.chunked_array([pa.array([None if names is None else "|".join(names) for names in lists], pa.string())])
    assert genres(text, "genres", "items").to_pylist() == expected


@given(
    st.lists(st.sampled_from(["1", "2.5", "", "-3e2"]), max_size=40),
    st.lists(st.sampled_from(["7", "x", ""]), max_size=40),
)
def test_the_first_bad_row_is_found(good, after):
    with pytest.raises(ShortlistError, match=rf"Received: 'bad' in data row {len(good) + 1}\."):
        numbers(pa.chunked_array([good, ["bad", *after]], pa.string()), "rating", "log")
