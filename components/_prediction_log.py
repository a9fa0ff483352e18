"""Requests and their answers as TF Serving logs them, `tensorflow.serving.PredictionLog` in TFRecords.

TF Serving replays those in `assets.extra` before a version answers its first request. The messages are described here
with the fields that are used, under the numbers of tensorflow/serving's prediction_log.proto, predict.proto and
model.proto: what is written is what they read, and no package is needed for it.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

WARMUP = "assets.extra/tf_serving_warmup_requests"
LIMIT = 1000  # records that TF Serving takes
TENSORS, TENSOR = "map of tensors", "tensorflow.TensorProto"
MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "ModelSpec": {"name": (1, "string"), "signature_name": (3, "string")},
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, TENSORS)},
    "PredictResponse": {"outputs": (1, TENSORS), "model_spec": (2, "ModelSpec")},
    "PredictLog": {"request": (1, "PredictRequest"), "response": (2, "PredictResponse")},
    "PredictionLog": {"predict_log": (6, "PredictLog")},
}
"""Number and type of the fields, by message and name."""


@cache
def prediction_log() -> Any:
    """The class of the message `PredictionLog`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, symbol_database
    from tensorflow.core.framework import tensor_pb2

    field_type = descriptor_pb2.FieldDescriptorProto
    package = "shortlist.serving"  # its own, so that the messages of tensorflow-serving-api may be there as well
    file = descriptor_pb2.FileDescriptorProto(
        name="shortlist/prediction_log.proto",
        package=package,
        syntax="proto3",
        dependency=[tensor_pb2.DESCRIPTOR.name],
    )

    def add(message: Any, name: str, number: int, kind: str, label: int = field_type.LABEL_OPTIONAL) -> None:
        field = message.field.add(name=name, number=number, label=label)
        if kind == "string":
            field.type = field_type.TYPE_STRING
        else:
            field.type = field_type.TYPE_MESSAGE
            field.type_name = f".{kind}" if kind == TENSOR else f".{package}.{kind}"

    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            if kind == TENSORS:
                entry = message.nested_type.add(name=f"{field.title()}Entry")
                entry.options.map_entry = True
                add(entry, "key", 1, "string")
                add(entry, "value", 2, TENSOR)
                add(message, field, number, f"{name}.{entry.name}", field_type.LABEL_REPEATED)
            else:
                add(message, field, number, kind)
    pool = descriptor_pool.Default()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    described = pool.FindMessageTypeByName(f"{package}.PredictionLog")
    if not hasattr(message_factory, "GetMessageClass"):  # protobuf before 4.22, of TFX 1.16
        return symbol_database.Default().GetPrototype(described)  # which keeps the classes of TensorFlow's messages
    return message_factory.GetMessageClass(described)


def tensor_proto(values: np.ndarray) -> Any:
    """An array as a `TensorProto`: numbers as they lie in memory, text in UTF-8."""
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    text = values.dtype == object
    proto = tensor_pb2.TensorProto(dtype=(tf.string if text else tf.as_dtype(values.dtype)).as_datatype_enum)
    proto.tensor_shape.SetInParent()
    for size in values.shape:
        proto.tensor_shape.dim.add(size=size)
    if text:
        proto.string_val.extend(v.encode() if isinstance(v, str) else v for v in values.ravel())
    else:
        proto.tensor_content = np.ascontiguousarray(values).tobytes()
    return proto


def log_record(model: str, signature: str, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> Any:
    """A request and its answer as a `PredictionLog`."""
    record = prediction_log()()
    request, response = record.predict_log.request, record.predict_log.response
    for spec in (request.model_spec, response.model_spec):
        spec.name, spec.signature_name = model, signature
    for tensors, arrays in ((request.inputs, inputs), (response.outputs, outputs)):
        for name, values in sorted(arrays.items()):
            tensors[name].CopyFrom(tensor_proto(values))
    return record


def write_logs(path: Path, records: Iterable[Any]) -> None:
    """Writes records as TFRecords, the same bytes for the same records."""
    import tensorflow as tf

    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record.SerializeToString(deterministic=True))
