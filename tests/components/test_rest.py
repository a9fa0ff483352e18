"""TF Serving's JSON: each request and each error of its documentation and of its sources, word for word."""

import json
import math

import numpy as np
import pytest

from shortlist.components._rest import (
    Call,
    RestError,
    parse,
    read_inputs,
    read_path,
    read_signature,
    refuse_above,
)
from shortlist.components._rest_answers import encode_outputs

ONE = {"x": np.dtype("float32")}
TEXT = {"x": np.dtype(object)}
NAMED = {"tag": np.dtype(object), "signal": np.dtype("int32"), "sensor": np.dtype("float32")}


def lists(arrays: dict[str, np.ndarray]) -> dict[str, list]:
    return {name: array.tolist() for name, array in arrays.items()}


def said(error: pytest.ExceptionInfo[RestError]) -> str:
    assert error.value.status == 400
    return error.value.message


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "call"),
    [
        ("GET", "/v1/models/half", Call("status", "half")),
        ("GET", "/v1/models/half/versions/3", Call("status", "half", 3)),
        ("GET", "/v1/models/half/metadata", Call("metadata", "half")),
        ("GET", "/v1/models/half/versions/3/metadata", Call("metadata", "half", 3)),
        ("GET", "/v1/models/half/labels/canary", Call("status", "half", None, "canary")),
        ("POST", "/v1/models/half:predict", Call("predict", "half")),
        ("POST", "/v1/models/half/versions/3:predict", Call("predict", "half", 3)),
        ("POST", "/V1/models/half:PREDICT", Call("predict", "half")),
        ("POST", "/v1/models/half:classify", Call("classify", "half")),
        ("POST", "/v1/models/half/labels/a%2Fb:regress", Call("regress", "half", None, "a/b")),
        ("POST", "/v1/models/..%2F..%2Fetc:predict", Call("predict", "../../etc")),
        ("POST", "/v1/models/caf%C3%A9:predict", Call("predict", "café")),
    ],
)
def test_a_path_says_what_is_asked_for(method: str, path: str, call: Call) -> None:
    assert read_path(method, path) == call
    assert read_path(method, call.path) == call


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models"),
        ("GET", "/v1/models/foo:predict"),
        ("GET", "/v1/models/foo/version/50:predict"),
        ("POST", "/v1/models/foo/version/50:regress"),
        ("POST", "/v1/models/foo/versions/HELLO:regress"),
        ("POST", "/v1/models/foo/metadata"),
        ("POST", "/v1/models/foo/versions/50/labels/some_label:regress"),
        ("POST", "/v1/models/foo/versions/²:predict"),
        ("PUT", "/v1/models/foo:predict"),
        ("GET", "/v1/models/foo/"),
        ("GET", "/v1/models/foo/../bar"),
    ],
)
def test_any_other_path_is_malformed(method: str, path: str) -> None:
    with pytest.raises(RestError) as error:
        read_path(method, path)
    assert said(error) == f"Malformed request: {method} {path}"


def test_a_version_beyond_64_bits_and_a_missing_name_are_refused() -> None:
    with pytest.raises(RestError) as error:
        read_path("POST", "/v1/models/foo/versions/18446744073709551615:regress")
    assert said(error) == "Failed to convert version: 18446744073709551615 to numeric."
    with pytest.raises(RestError) as error:
        read_path("GET", "/v1/models")
    assert said(error) == "Missing model name in request."


# --- requests of the documentation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "types", "expected"),
    [
        ('{"instances": [1.0, 2.0, 5.0]}', ONE, {"x": [1.0, 2.0, 5.0]}),
        ('{"instances": ["foo", "bar", "baz"]}', TEXT, {"x": [b"foo", b"bar", b"baz"]}),
        ('{"instances": [[[1, 2]], [[3, 4]]]}', ONE, {"x": [[[1, 2]], [[3, 4]]]}),
        ('{"instances": [{"b64": "aGVsbG8="}, {"b64": "d29ybGQ"}]}', TEXT, {"x": [b"hello", b"world"]}),
        ('{"instances": [{"x": [[{"b64": "aGVsbG8="}], ["é"]]}]}', TEXT, {"x": [[[b"hello"], ["é".encode()]]]}),
        (
            '{"instances": [{"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},'
            ' {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]}]}',
            NAMED,
            {
                "tag": [b"foo", b"bar"],
                "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
                "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]],
            },
        ),
        (
            '{"inputs": {"tag": ["foo", "bar"], "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],'
            ' "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]], "more": "is ignored"}}',
            NAMED,
            {
                "tag": [b"foo", b"bar"],
                "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
                "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]],
            },
        ),
        ('{"inputs": [3.0, 4]}', ONE, {"x": [3.0, 4.0]}),
        ('{"inputs": 3.0}', ONE, {"x": 3.0}),
        ('{"inputs": {"b64": "aGVsbG8="}}', TEXT, {"x": b"hello"}),
        ('{"inputs": {"x": [[]]}}', TEXT, {"x": [[]]}),
        ('\ufeff {"inputs": [1]} and what follows', ONE, {"x": [1.0]}),
        ('{"inputs": [1e400, -1e400, 1435774380]}', ONE, {"x": [math.inf, -math.inf, 1435774336.0]}),
        (f'{{"inputs": [1{"0" * 400}, 3.5e38]}}', ONE, {"x": [math.inf, math.inf]}),
        ('{"inputs": [true, false]}', {"x": np.dtype(bool)}, {"x": [True, False]}),
        ('{"inputs": [9223372036854775807]}', {"x": np.dtype("int64")}, {"x": [9223372036854775807]}),
        ('{"inputs": [18446744073709551615]}', {"x": np.dtype("uint64")}, {"x": [18446744073709551615]}),
    ],
)
def test_both_formats_become_arrays(body: str, types: dict[str, np.dtype], expected: dict[str, list]) -> None:
    arrays, by_rows = read_inputs(parse(body.encode()), types)
    assert lists(arrays) == expected
    assert by_rows == ("instances" in body)
    assert {name: array.dtype for name, array in arrays.items()} == types


def test_tokens_that_json_does_not_know_are_numbers() -> None:
    arrays, _ = read_inputs(parse(b'{"instances": [1.0, NaN, Infinity, -Infinity]}'), ONE)
    assert np.array_equal(arrays["x"], [1, np.nan, np.inf, -np.inf], equal_nan=True)


def test_the_name_of_the_signature() -> None:
    assert read_signature({}) == read_signature({"signature_name": ""}) == "serving_default"
    assert read_signature({"signature_name": "recommend"}) == "recommend"


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"  \n", "JSON Parse error: The document is empty. at offset: 3"),
        (b"instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0"),
        (b'{"inputs": [1, 2', "JSON Parse error: Missing a comma or ] after an array element. at offset: 16"),
        (b'{"inputs": [1] "x"', "JSON Parse error: Missing a comma or } after an object member. at offset: 15"),
        (b'{"inputs" [1]}', "JSON Parse error: Missing a colon after a name of object member. at offset: 10"),
        (b"{1: 2}", "JSON Parse error: Missing a name for object member. at offset: 1"),
        (b'{"inputs": "a}', "JSON Parse error: Missing a closing quotation mark in string. at offset: 11"),
        (b'{"inputs": "\\x"}', "JSON Parse error: Invalid escape character in string. at offset: 12"),
        (b'{"inputs": "\xff"}', "JSON Parse error: Invalid encoding in string. at offset: 12"),
        (b"[1, 2]", "JSON Value: [1, 2] Is not object"),
        (b"null", "JSON Value: null Is not object"),
        (b'{"x": ' + b"[" * 100_000, "JSON Parse error: Nested too deeply. at offset: 0"),
        (b'{"x": 1' + b"0" * 5_000 + b"}", "JSON Parse error: Number too big to be stored in double. at offset: 0"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(RestError) as error:
        parse(body)
    assert said(error) == message


WHOLE = '{"tag": "a", "signal": [1], "sensor": [1]}'
FAILED = "Failed to process element: "


@pytest.mark.parametrize(
    ("body", "types", "message"),
    [
        ("{}", ONE, "Missing 'inputs' or 'instances' key"),
        (
            '{"instances": [1], "inputs": [1]}',
            ONE,
            'JSON Value: {\n    "instances": [1],\n    "inputs": [1]\n} Not formatted correctly expecting only one of '
            "'inputs' or 'instances' keys to exist ",
        ),
        (
            '{"instances": {"x": 1}}',
            ONE,
            'JSON Value: {\n    "instances": {\n        "x": 1\n    }\n} Expecting \'instances\' to be an list/array',
        ),
        ('{"instances": []}', ONE, "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
        (
            '{"instances": [1]}',
            NAMED,
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map",
        ),
        (
            '{"inputs": [1]}',
            NAMED,
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map",
        ),
        ('{"inputs": {"tag": ["a"], "signal": [1]}}', NAMED, "Missing named input: sensor in 'inputs' object."),
        (
            '{"instances": ["x"]}',
            ONE,
            f"{FAILED}0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"x\" Type: String is not of "
            "expected type: float",
        ),
        (
            '{"inputs": [null]}',
            TEXT,
            "JSON Value: null Type: Null is not of expected type: string",
        ),
        ('{"inputs": [true]}', ONE, "JSON Value: true Type: True is not of expected type: float"),
        ('{"inputs": [1.5]}', {"x": np.dtype("int32")}, "JSON Value: 1.5 Type: Number is not of expected type: int32"),
        (
            '{"inputs": [2147483648]}',
            {"x": np.dtype("int32")},
            "JSON Value: 2147483648 Type: Number is not of expected type: int32",
        ),
        ('{"inputs": [{"a": 1}]}', TEXT, 'JSON Value: {\n    "a": 1\n} not formatted correctly for base64 data'),
        ('{"inputs": [{"a": 1}]}', ONE, 'JSON Value: {\n    "a": 1\n} Type: Object is not of expected type: float'),
        ('{"inputs": [{"b64": "a"}]}', TEXT, "Unable to base64 decode"),
        ('{"inputs": [{"b64": "é!"}]}', TEXT, "Unable to base64 decode"),
        ('{"inputs": ["\\ud800"]}', TEXT, "JSON Parse error: The surrogate pair in string is invalid. at offset: 0"),
        ('{"inputs": [[1, 2], [3]]}', ONE, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ('{"inputs": [1, [2]]}', ONE, "Encountered list at unexpected level: 1 expected < 1"),
        (
            '{"inputs": [[1], 2]}',
            ONE,
            "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        (
            '{"instances": [[1, 2], [3]]}',
            ONE,
            f"{FAILED}1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 1",
        ),
        (
            '{"instances": [[[1, 2]], [[1], [2]]]}',
            ONE,
            f"{FAILED}1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting shape [1,2] but got: [2,1]",
        ),
        (f'{{"instances": [{WHOLE}, 1]}}', NAMED, "Expecting object but got list at item 1 of input list"),
        ('{"instances": [1, {"x": 1}]}', ONE, "Expecting value/list but got object at item 1 of input list"),
        (
            '{"instances": [{"tag": "a", "other": 1}]}',
            NAMED,
            f"{FAILED}0 key: other of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not have named "
            "input: other",
        ),
        (
            '{"instances": [{"tag": "a", "signal": [1]}]}',
            NAMED,
            f'{FAILED}0 of \'instances\' list. JSON object: {{\n    "tag": "a",\n    "signal": [1]\n}} keys must be '
            "equal to: sensor,signal,tag",
        ),
    ],
)
def test_inputs_that_are_refused(body: str, types: dict[str, np.dtype], message: str) -> None:
    with pytest.raises(RestError) as error:
        read_inputs(parse(body.encode()), types)
    assert said(error) == message


def test_a_name_of_a_signature_must_be_text() -> None:
    with pytest.raises(RestError) as error:
        read_signature({"signature_name": 100})
    expected = "JSON Value: {\n    \"signature_name\": 100\n} not formatted correctly. 'signature_name' key must be a "
    assert said(error) == expected + "string value."


def test_types_that_json_does_not_carry_are_refused() -> None:
    with pytest.raises(RestError) as error:
        read_inputs(parse(b'{"inputs": [1.5]}'), {"x": np.dtype("float16")})
    assert (error.value.status, error.value.message) == (501, "Conversion of JSON Value: 1.5 to type: half")
    with pytest.raises(RestError) as error:
        encode_outputs({"y": np.zeros(1, np.float16)}, False)
    assert said(error) == "Failed to write JSON value for tensor type: half"


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_single_output_comes_without_its_name() -> None:
    outputs = {"y": np.array([3.5, 4.0, 5.5], np.float32)}
    assert encode_outputs(outputs, True) == b'{"predictions": [3.5, 4.0, 5.5]}'
    assert encode_outputs(outputs, False) == b'{"outputs": [3.5, 4.0, 5.5]}'


def test_outputs_by_rows_and_by_columns() -> None:
    outputs = {
        "count": np.array([1, 2], np.int32),
        "items": np.array([[b"a", "é".encode()], [b"c", b"\xff"]], object),
        "raw_bytes": np.array([b"\x00\xff", b"hello"], object),
        "ok": np.array([True, False]),
    }
    rows = json.loads(encode_outputs(outputs, True))["predictions"]
    assert rows == [
        {"count": 1, "items": ["a", "é"], "raw_bytes": {"b64": "AP8="}, "ok": True},
        {"count": 2, "items": ["c", "\ufffd"], "raw_bytes": {"b64": "aGVsbG8="}, "ok": False},
    ]
    columns = json.loads(encode_outputs(outputs, False))["outputs"]
    assert columns == {name: [row[name] for row in rows] for name in outputs}


def test_numbers_have_as_many_digits_as_they_need() -> None:
    values = np.array([0.2, 1 / 3, 9e6, 3e-5, 16777216, np.nan, np.inf, -np.inf, 0], np.float32)
    text = encode_outputs({"y": values}, False).decode()
    assert text == '{"outputs": [0.2, 0.333333343, 9000000.0, 3e-05, 16777216.0, NaN, Infinity, -Infinity, 0.0]}'
    double = np.array([1 / 3, 0.1])
    assert json.loads(encode_outputs({"y": double}, False))["outputs"] == double.tolist()
    random = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert np.array_equal(np.array(json.loads(encode_outputs({"y": random}, False))["outputs"], np.float32), random)


def test_answers_that_cannot_be_given() -> None:
    with pytest.raises(RestError) as error:
        encode_outputs({"a": np.zeros(2, np.int32), "b": np.zeros(3, np.int32)}, True)
    assert said(error) == "Tensor name: b has inconsistent batch size: 3 expecting: 2"
    with pytest.raises(RestError) as error:
        encode_outputs({"a": np.int32(1)}, True)
    assert said(error) == "Tensor name: a has no shape information "
    with pytest.raises(RestError) as error:
        encode_outputs({}, False)
    assert said(error) == "Cannot convert empty tensor map to JSON"
    with pytest.raises(RestError) as error:
        encode_outputs({"a": np.zeros(1, np.complex64)}, False)
    assert said(error) == "Failed to write JSON value for tensor type: complex64"


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"instances": [1, 2, 3]}, "A request must have at most 2 rows here (--max-batch). Received: 3."),
        ({"inputs": {"user": [""], "k": [1, 2, 3]}}, "A request must have at most 2 rows here (--max-batch)."),
        ({"inputs": [1, 2, 3]}, "A request must have at most 2 rows here (--max-batch). Received: 3."),
        ({"instances": [{"k": 11}]}, "`k` must be at most 10 here (--max-k). Received: 11."),
        ({"inputs": {"k": [1, 3_000_000_000]}}, "`k` must be at most 10 here (--max-k). Received: 3000000000."),
        ({"inputs": {"examples": [{"b64": "12"}]}}, "`k` must be at most 10 here (--max-k). Received: 12."),
        ({"inputs": [{"b64": "12"}]}, "`k` must be at most 10 here (--max-k). Received: 12."),
        ({"instances": [{"b64": "12"}]}, "`k` must be at most 10 here (--max-k). Received: 12."),
        ({"instances": [{"examples": {"b64": "12"}}]}, "`k` must be at most 10 here (--max-k). Received: 12."),
    ],
)
def test_more_than_the_limits_is_refused(request_: dict, message: str) -> None:
    before = json.dumps(request_)
    with pytest.raises(RestError) as error:
        refuse_above(request_, 2, 10, int)
    assert said(error).startswith(message)
    assert json.dumps(request_) == before


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"instances": "text"},
        {"inputs": None},
        {"inputs": {"k": [10, -1]}},
        {"inputs": {"k": "many", "examples": 3}},
        {"inputs": {"k": [None, [11], 1e9, True]}},
        {"instances": [{"k": [99]}, None]},
        {"inputs": {"k": [10], "examples": [{"b64": "10"}]}},
    ],
)
def test_what_is_within_the_limits_or_wrong_otherwise_is_left_to_others(request_: dict) -> None:
    if isinstance(request_.get("inputs"), dict) and len(request_["inputs"].get("k", [])) > 2:
        request_ = {"inputs": {"k": request_["inputs"]["k"][:2]}}
    refuse_above(request_, 2, 10, int)
