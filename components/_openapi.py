"""How the OpenAPI document describes the paths of TF Serving's REST interface."""

from typing import Any, NamedTuple

ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string", "description": "What is wrong, in words."}},
    "required": ["error"],
}
CODES = {
    400: "What is wrong with the request.",
    404: "The model, or this version of it, is not served.",
    408: "The request did not arrive in time.",
    413: "The request is too large.",
    422: "A value is not what it must be.",
    502: "The TF Serving behind this server cannot be asked.",
    503: "Too many requests wait.",
    504: "There was no answer in time.",
}


class Route(NamedTuple):
    """A path that is answered as TF Serving does."""

    method: str
    path: str
    summary: str
    extra: dict[str, Any]


def content(schema: dict[str, Any], **further: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema, **further}}}


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a path may answer with."""
    return {code: {"description": CODES[code], **content(ERROR)} for code in codes}


def _objects(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_VALUE: dict[str, Any] = {
    "description": "A value, or lists of values; bytes are an object with their base 64 as `b64`."
}
_REQUEST = {
    "type": "object",
    "properties": {
        "signature_name": {"type": "string", "description": "`serving_default` if none is given."},
        "instances": {
            "type": "array",
            "minItems": 1,
            "description": "Rows: values by input, or those of the only one.",
        },
        "inputs": {**_VALUE, "description": f"Columns: by input, or that of the only one. {_VALUE['description']}"},
    },
    "description": "Either `instances` or `inputs`; signatures.md beside a pushed model says what each input means.",
}
_ANSWER = {
    "type": "object",
    "properties": {"predictions": {"type": "array"}, "outputs": _VALUE},
    "description": "`predictions` to `instances`, `outputs` to `inputs`; a single output comes without its name.",
}
_STATE = _objects(
    version={"type": "string"},
    state={"type": "string", "enum": ["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]},
    status=_objects(error_code={"type": "string"}, error_message={"type": "string"}),
)
_STATUS = _objects(model_version_status={"type": "array", "items": _STATE})
_METADATA = _objects(
    model_spec=_objects(name={"type": "string"}, signature_name={"type": "string"}, version={"type": "string"}),
    metadata=_objects(signature_def={"type": "object"}),
)
_EXAMPLE = {
    "signature_name": "recommend",
    "inputs": {"user": [""], "history": [["1", "2"]], "exclude": [[""]], "time": [-1], "k": [10]},
}


def routes(model: str) -> list[Route]:
    """The paths of the server of a model."""

    def parameter(name: str, **schema: Any) -> dict[str, Any]:
        return {"name": name, "in": "path", "required": True, "schema": schema}

    of_model = parameter("model", type="string", enum=[model])
    of_version = parameter("version", type="integer", minimum=0, example=1)
    found = []
    for parameters, prefix in (([of_model], ""), ([of_model, of_version], "/versions/{version}")):
        path = "/v1/models/{model}" + prefix
        of = "of one version" if prefix else "of the newest version"
        for method, end, summary, schema in (
            ("GET", "", "The state of the versions" if not prefix else "The state of one version", _STATUS),
            ("GET", "/metadata", f"The signatures {of}", _METADATA),
            ("POST", ":predict", f"The answer of a signature {of}", _ANSWER),
        ):
            codes = [code for code in CODES if code != 422 and (method == "POST" or code != 413)]
            extra: dict[str, Any] = {
                "parameters": parameters,
                "responses": {
                    "200": {"description": summary, **content(schema)},
                    **{str(code): refusal for code, refusal in refusals(*codes).items()},
                },
            }
            if method == "POST":
                extra["requestBody"] = {"required": True, **content(_REQUEST, example=_EXAMPLE)}
            found.append(Route(method, path + end, summary, extra))
    return found
