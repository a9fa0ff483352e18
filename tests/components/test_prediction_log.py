"""The warm-up records: TF Serving's own messages read them, and they say what was asked and answered."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from shortlist.components._prediction_log import LIMIT, WARMUP, log_record, prediction_log, tensor_proto
from shortlist.components._replay import answer, differences


def logs(served: dict[str, Any], message: Any) -> list[Any]:
    return [
        message.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(served["Exporter"] / "saved_model" / WARMUP))
    ]


def test_the_records_are_the_recorded_requests_and_replay_to_their_answers(served: dict[str, Any]) -> None:
    bundle = served["Exporter"]
    recorded = bundle.read_json("requests.json")
    loaded = tf.saved_model.load(str(bundle / "saved_model")).signatures
    found = logs(served, prediction_log())
    assert len(found) == len(recorded["requests"]) <= LIMIT
    for log, record in zip(found, recorded["requests"], strict=True):
        request, response = log.predict_log.request, log.predict_log.response
        assert request.model_spec.name == response.model_spec.name == "shortlist"
        assert request.model_spec.signature_name == record["signature_name"]
        function = loaded[record["signature_name"]]
        inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
        specs = function.structured_input_signature[1]
        assert {n: v.dtype for n, v in inputs.items()} == {n: s.dtype for n, s in specs.items()}
        outputs = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
        for name, value in function(**inputs).items():
            assert outputs[name].shape == value.shape
            if value.dtype == tf.float32:
                np.testing.assert_allclose(value, outputs[name], rtol=1e-6, atol=0)
            else:
                np.testing.assert_array_equal(value, outputs[name])
        again = answer(function, record["inputs"])
        assert differences("here", record["outputs"], again) == []
        assert {n: v.tobytes() for n, v in again.items() if v.dtype != object} == {
            n: v.tobytes() for n, v in outputs.items() if v.dtype != object
        }


def test_the_messages_are_those_of_tensorflow_serving(served: dict[str, Any]) -> None:
    """What was written reads, and is written again, as the same by the generated classes of tensorflow-serving-api."""
    theirs = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2").PredictionLog
    for ours, log in zip(logs(served, prediction_log()), logs(served, theirs), strict=True):
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.signature_name == ours.predict_log.request.model_spec.signature_name
        assert sorted(request.inputs) == sorted(ours.predict_log.request.inputs)
        assert sorted(log.predict_log.response.outputs) == sorted(ours.predict_log.response.outputs)
        assert log.SerializeToString(deterministic=True) == ours.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "values",
    [
        np.float32([[1.5, -0.0], [np.inf, 1e-45]]),
        np.int64([]),
        np.int32([[-7]]),
        np.array([["é", ""], ["a", "b"]], object),
        np.array([b"\xff\x00"], object),
        np.zeros((3, 0), object),
    ],
)
def test_tensors_read_as_what_they_were(values: np.ndarray) -> None:
    found = tf.make_ndarray(tensor_proto(values))
    assert found.shape == values.shape
    if values.dtype == object:
        assert (
            found.tolist()
            == np.array([v.encode() if isinstance(v, str) else v for v in values.flat], object)
            .reshape(values.shape)
            .tolist()
        )
    else:
        assert found.dtype == values.dtype
        assert found.tobytes() == values.tobytes()


def test_the_same_record_has_the_same_bytes() -> None:
    a = log_record("m", "s", {"x": np.int32([1]), "y": np.int32([2])}, {"z": np.float32([3])})
    b = log_record("m", "s", {"y": np.int32([2]), "x": np.int32([1])}, {"z": np.float32([3])})
    assert a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True)
