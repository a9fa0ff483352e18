"""Whatever bytes or values a request holds, the bundle answers with numbers or TensorFlow says what is wrong."""

import base64
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.components._records import encode_example

ITEMS = 20
TEXT = st.one_of(
    st.sampled_from(["", "usér 3", "Ärger-0", "映画-9", "an unknown one", "home", "train"]),
    st.text(max_size=12),
).map(lambda text: text.encode("utf-8", "surrogatepass"))
REQUESTS = (
    {"user": "usér 3", "k": 5},
    {"history": ["Ärger-0", "映画-9"], "history_time": [1_500_000_000, -1], "time": 1_600_000_000},
    {"user": "x", "history": ["映画-1"], "exclude": ["Ärger-0"], "context_place": "home", "history_rating": [3.0]},
    {"user": "usér 3", "include_only": ["映画-1", "Ärger-9"], "diversity": 0.5, "quota_item_knn": 2},
)
VALID = [base64.b64decode(encode_example(request)) for request in REQUESTS]
NUMBERS = st.one_of(st.sampled_from([-1, 0, 1, -(2**63), 2**63 - 1, 1_500_000_000]), st.integers(-(2**63), 2**63 - 1))


@pytest.fixture(scope="module")
def signatures(served: dict[str, Any]) -> Any:
    return tf.saved_model.load(str(served["Exporter"] / "saved_model")).signatures


def check(answer: dict[str, tf.Tensor], rows: int) -> None:
    """Whole rows of ids and finite scores."""
    found = {name: value.numpy() for name, value in answer.items()}
    assert np.isfinite(found["scores"]).all()
    assert found["items"].shape == found["scores"].shape
    assert found["count"].shape == (rows,)
    assert ((found["count"] >= 0) & (found["count"] <= ITEMS)).all()
    there = found["items"] != b""
    np.testing.assert_array_equal(there.sum(axis=1), found["count"])
    for row, shown in zip(found["items"], there, strict=True):
        assert len(set(row[shown])) == shown.sum()


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A serialized example with some bytes changed, cut off, doubled or put in."""
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        what = draw(st.sampled_from(["change", "cut", "double", "insert"]))
        if what == "change" and data:
            data[at] = draw(st.integers(0, 255))
        elif what == "cut":
            del data[at:]
        elif what == "double":
            data += data[at:]
        else:
            data[at:at] = draw(st.binary(max_size=8))
    return bytes(data)


@given(st.lists(st.one_of(broken(), st.binary(max_size=60), st.sampled_from(VALID)), max_size=4))
@settings(max_examples=150)
def test_examples_of_any_bytes_are_answered_or_refused(signatures: Any, examples: list[bytes]) -> None:
    try:
        answer = signatures["serving_default"](examples=tf.constant(examples, tf.string, [len(examples)]))
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):  # a refusal that quotes bytes is no text for Python
        return
    check(answer, len(examples))


@st.composite
def wild(draw: st.DrawFn) -> dict[str, Any]:
    """An example of the right kinds with any values."""
    lists = st.lists(TEXT, max_size=4)
    numbers = st.lists(st.floats(width=32), max_size=4)
    kinds = {
        **{"user": TEXT, "context_place": TEXT, "history": lists, "exclude": lists},
        **{"history_time": st.lists(NUMBERS, max_size=4), "history_rating": numbers, "history_watch_time": numbers},
        **{"time": NUMBERS, "k": NUMBERS, "something else": NUMBERS, "quota_two_tower": NUMBERS},
        **{"include_only": lists, "diversity": st.floats(width=32)},
    }
    return {name: draw(kind) for name, kind in kinds.items() if draw(st.booleans())}


def serialized(values: dict[str, Any]) -> bytes:
    example = tf.train.Example()
    for name, value in values.items():
        value = value if isinstance(value, list) else [value]
        feature = example.features.feature[name]
        if name in ("history_rating", "history_watch_time", "diversity"):
            feature.float_list.value.extend(value)
        elif name in ("history_time", "time", "k", "something else", "quota_two_tower"):
            feature.int64_list.value.extend(value)
        else:
            feature.bytes_list.value.extend(value)
    return example.SerializeToString()


@given(st.lists(wild(), max_size=4))
@settings(max_examples=100)
def test_examples_of_any_values_are_answered(signatures: Any, requests: list[dict[str, Any]]) -> None:
    examples = [serialized(request) for request in requests]
    check(signatures["serving_default"](examples=tf.constant(examples, tf.string, [len(examples)])), len(requests))


@given(st.data())
@settings(max_examples=60)
def test_raw_inputs_of_any_values_are_answered_and_of_other_sizes_refused(signatures: Any, data: st.DataObject) -> None:
    function = signatures["recommend"]
    rows = data.draw(st.integers(0, 3))
    other = data.draw(st.sampled_from([None, None, *function.structured_input_signature[1]]))
    given: dict[str, tf.Tensor] = {}
    for name, spec in function.structured_input_signature[1].items():
        shape = [rows + (name == other), *([data.draw(st.integers(0, 4))] if spec.shape.rank == 2 else [])]
        size = int(np.prod(shape))
        value = TEXT if spec.dtype == tf.string else NUMBERS
        if spec.dtype == tf.int32:
            value = st.integers(-(2**31), 2**31 - 1)
        given[name] = tf.constant(data.draw(st.lists(value, min_size=size, max_size=size)), spec.dtype, shape)
    if other:
        with pytest.raises(tf.errors.InvalidArgumentError, match="must have one row a request"):
            function(**given)
    else:
        check(function(**given), rows)
