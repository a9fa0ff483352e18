"""What lies beside the versions of a pushed model: TF Serving's configurations, a compose file and a client."""

from pathlib import Path
from pprint import pformat
from typing import Any

IMAGE = "tensorflow/serving:2.20.0"
MAX_BATCH = 64

MODELS = """\
# tensorflow_model_server --model_config_file=models.config
# The newest version is served; `shortlist rollback` takes it away, and the one before is served again.
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    model_version_policy {{ latest {{ num_versions: 1 }} }}
  }}
}}
"""
MONITORING = """\
# tensorflow_model_server --monitoring_config_file=monitoring.config --rest_api_port=8501
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""
BATCHING = f"""\
# tensorflow_model_server --enable_batching=true --batching_parameters_file=batching.config
# Requests that arrive together are answered together. A request of more than {MAX_BATCH} rows is refused then.
# Ask `serving_default`, whose rows are all alike. The lists of the short forms are tensors, and TF Serving refuses to
# join those of different widths. It must not pad them: it would fill up with a list's first id, and so watch it again.
max_batch_size {{ value: {MAX_BATCH} }}
batch_timeout_micros {{ value: 2000 }}
max_enqueued_batches {{ value: 100 }}
num_batch_threads {{ value: 4 }}
pad_variable_length_inputs: false
"""
COMPOSE = """\
# docker compose up: gRPC on port 8500, REST and metrics on port 8501.
services:
  {name}:
    image: {image}
    restart: unless-stopped
    ports: ["8500:8500", "8501:8501"]
    volumes: [".:/models/{name}:ro"]
    environment:
      MODEL_NAME: "{name}"
    command:
      - --model_config_file=/models/{name}/models.config
      - --monitoring_config_file=/models/{name}/monitoring.config
      # Most operations of this graph are too small to be shared; without this, threads wait for each other.
      - --tensorflow_intra_op_parallelism=1
      # For many clients of `serving_default`; see batching.config.
      # - --enable_batching=true
      # - --batching_parameters_file=/models/{name}/batching.config
"""
NAMES = ("models.config", "monitoring.config", "batching.config", "docker-compose.yaml", "client.py", "signatures.md")


def serving_files(name: str, records: dict[str, Any], page: str) -> dict[str, str]:
    """The files by name.

    Args:
      name: the model's name in TF Serving.
      records: of the bundle, see `Bundle`.
      page: its signatures.md.
    """
    examples: dict[str, Any] = {}
    for record in records["requests"]:
        examples.setdefault(record["signature_name"], record["inputs"])
    client = Path(__file__).with_name("_client.py").read_text("utf-8")
    for start, value in {"TYPES: ": records.get("types", {}), "EXAMPLES: ": examples}.items():
        place = client.index(" = {}", client.index(f"\n{start}")) + len(" = ")
        client = client[:place] + pformat(value, width=110) + client[place + len("{}") :]
    client = client.replace('MODEL = "MODEL"', f'MODEL = "{name}"', 1).replace("model MODEL", f"model {name}", 1)
    texts = (
        MODELS.format(name=name),
        MONITORING,
        BATCHING,
        COMPOSE.format(name=name, image=IMAGE),
        client,
        page,
    )
    return dict(zip(NAMES, texts, strict=True))
