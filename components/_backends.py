"""Who answers a request of TF Serving's REST interface: a model in this process, or a TF Serving elsewhere."""

import http.client
import json
from typing import Any, Protocol
from urllib.parse import urlsplit

from shortlist import ShortlistError
from shortlist.components._rest import (
    BAD_GATEWAY,
    INVALID,
    NOT_FOUND,
    TIMEOUT,
    Call,
    RestError,
    read_inputs,
    read_signature,
)
from shortlist.components._rest_answers import encode_outputs
from shortlist.components._versions import State, Versions

METHODS = {"classify": "classification", "regress": "regression"}


class Backend(Protocol):
    """Answers calls, in whatever thread asks."""

    def get(self, call: Call, seconds: float) -> tuple[int, bytes]:
        """Status code and body of the status or the metadata."""
        ...

    def post(self, call: Call, request: dict[str, Any], body: bytes, seconds: float) -> tuple[int, bytes]:
        """Status code and body of a request, parsed and as it came."""
        ...


class Embedded:
    """The newest version of a model on disk.

    Args:
      versions: of the model.
      name: the model's.
    """

    def __init__(self, versions: Versions, name: str):
        self.versions, self.name = versions, name

    def get(self, call: Call, seconds: float) -> tuple[int, bytes]:
        """See `Backend`."""
        _refuse_label(call)
        return 200, self._metadata(call) if call.verb == "metadata" else self._status(call)

    def _status(self, call: Call) -> bytes:
        states = self.versions.states if call.model == self.name else {}
        if call.version is not None:
            states = {number: state for number, state in states.items() if number == call.version}
            if not states:
                raise RestError(NOT_FOUND, f"Could not find version {call.version} of model {call.model}")
        if not states:
            raise RestError(NOT_FOUND, f"Could not find any versions of model {call.model}")

        def told(number: int, state: State) -> dict[str, Any]:
            status = {"error_code": state.code, "error_message": state.message}
            return {"version": str(number), "state": state.state, "status": status}

        found = [told(number, state) for number, state in sorted(states.items(), reverse=True)]
        return json.dumps({"model_version_status": found}, indent=1).encode()

    def _metadata(self, call: Call) -> bytes:
        from google.protobuf.json_format import MessageToDict

        with self.versions.using(self._known(call), call.version) as version:
            assert version.graph
            definitions = {
                name: MessageToDict(
                    definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
                )
                for name, definition in sorted(version.graph.definitions.items())
            }
            spec = {"name": self.name, "signature_name": "", "version": str(version.number)}
        return json.dumps(
            {"model_spec": spec, "metadata": {"signature_def": {"signature_def": definitions}}}, indent=1
        ).encode()

    def _known(self, call: Call) -> str:
        """The model's name, if it is that of the call."""
        if call.model != self.name:
            of = f"Latest({call.model})" if call.version is None else f"Specific({call.model}, {call.version})"
            raise RestError(NOT_FOUND, f"Servable not found for request: {of}")
        return self.name

    def post(self, call: Call, request: dict[str, Any], body: bytes, seconds: float) -> tuple[int, bytes]:
        """See `Backend`."""
        _refuse_label(call)
        signature = read_signature(request)
        with self.versions.using(self._known(call), call.version) as version:
            assert version.graph
            if call.verb in METHODS:
                wanted, method = f"tensorflow/serving/{call.verb}", "tensorflow/serving/predict"
                raise RestError(
                    INVALID,
                    f"Expected {METHODS[call.verb]} signature method_name to be {wanted}. Was: {method}",
                )
            if signature not in version.graph.definitions:
                raise RestError(INVALID, f'Serving signature name: "{signature}" not found in signature def')
            if signature not in version.graph.types:
                name = request.get("signature_name") or "DEFAULT"
                raise RestError(INVALID, f"Failed to get input map for signature: {name}")
            inputs, by_rows = read_inputs(request, version.graph.types[signature])
            return 200, encode_outputs(version.graph(signature, inputs, seconds), by_rows)


def _refuse_label(call: Call) -> None:
    if call.label is not None:
        raise RestError(INVALID, f"Unrecognized servable version label: {call.label}")


class Remote:
    """A TF Serving elsewhere.

    Args:
      url: of its REST interface, such as http://host:8501.

    Raises:
      ShortlistError: if the URL is none.
    """

    def __init__(self, url: str):
        try:
            found = urlsplit(url)
            port = found.port
        except ValueError:
            found, port = urlsplit(""), None
        if found.scheme not in ("http", "https") or not found.hostname or found.path not in ("", "/") or found.query:
            raise ShortlistError(
                f"`--backend` must be `embedded`, or the address of a TF Serving such as http://host:8501. "
                f"Received: {url}."
            )
        self._secure, self._host, self._port = found.scheme == "https", found.hostname, port

    def get(self, call: Call, seconds: float) -> tuple[int, bytes]:
        """See `Backend`."""
        return self._ask("GET", call, None, seconds)

    def post(self, call: Call, request: dict[str, Any], body: bytes, seconds: float) -> tuple[int, bytes]:
        """See `Backend`."""
        return self._ask("POST", call, body, seconds)

    def _ask(self, method: str, call: Call, body: bytes | None, seconds: float) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=seconds)
        try:
            connection.request(method, call.path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except TimeoutError:
            raise RestError(TIMEOUT, f"TF Serving did not answer within {seconds:g} seconds.") from None
        except (OSError, http.client.HTTPException) as error:
            text = getattr(error, "strerror", None) or error.__class__.__name__
            raise RestError(BAD_GATEWAY, f"TF Serving cannot be asked: {text}.") from None
        finally:
            connection.close()
