"""Asks the model MODEL of TF Serving, over REST with nothing but Python, or over gRPC with tensorflow-serving-api.

    python client.py                                  one request of every signature, over REST
    python client.py recommend '{"user": ["42"], …}'  one of your own: the inputs by name, a row a request
    python client.py --grpc --host localhost:8500     the same over gRPC

`""` (text) and -1 (numbers) mean absent; signatures.md says what each input means.
"""

import argparse
import base64
import json
import urllib.error
import urllib.request

MODEL = "MODEL"
TYPES: dict[str, dict[str, str]] = {}  # of the inputs, by signature
EXAMPLES: dict[str, dict[str, list]] = {}  # a request a signature


def rest(signature, inputs, host="localhost:8501", timeout=10.0):
    """The outputs by name, as lists."""
    body = json.dumps({"signature_name": signature, "inputs": inputs}).encode()
    request = urllib.request.Request(f"http://{host}/v1/models/{MODEL}:predict", body)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            outputs = json.load(answer)["outputs"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error.code}: {error.read().decode(errors='replace')}") from None
    return outputs if isinstance(outputs, dict) else {"scores": outputs}  # a single output comes without its name


def grpc(signature, inputs, host="localhost:8500", timeout=10.0):
    """The same over gRPC."""
    import grpc as channels
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    def plain(value):
        if isinstance(value, list):
            return [plain(v) for v in value]
        return base64.b64decode(value["b64"]) if isinstance(value, dict) else value

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = MODEL, signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(plain(value), TYPES[signature][name]))
    with channels.insecure_channel(host) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        outputs = service.Predict(request, timeout).outputs

    def text(value):
        return [text(v) for v in value] if isinstance(value, list) else value.decode()

    arrays = {name: tf.make_ndarray(proto) for name, proto in outputs.items()}
    return {name: text(a.tolist()) if a.dtype == object else a.tolist() for name, a in arrays.items()}


def main():
    """Prints the answers as JSON, a line a signature."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("signature", nargs="?", choices=sorted(TYPES))
    parser.add_argument("inputs", nargs="?", type=json.loads)
    parser.add_argument("--grpc", action="store_true")
    parser.add_argument("--host")
    asked = parser.parse_args()
    ask = grpc if asked.grpc else rest
    where = {"host": asked.host} if asked.host else {}
    for signature in [asked.signature] if asked.signature else sorted(EXAMPLES):
        outputs = ask(signature, asked.inputs or EXAMPLES[signature], **where)
        print(json.dumps({signature: outputs}, ensure_ascii=False))


if __name__ == "__main__":
    main()
