"""Publishes a blessed bundle where TF Serving looks for it."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pydantic

from shortlist import ShortlistError
from shortlist.components._config import Config
from shortlist.components._files import locked, sync
from shortlist.components._replay import read_records
from shortlist.components.artifacts import Bundle, InfraBlessing, Model, ModelEvaluation, PushedModel
from shortlist.components.pipeline import Component

PARTIAL, REMOVED = ".partial", ".removed"  # TF Serving looks at whole numbers only


class PusherConfig(Config):
    """Settings of `Pusher`.

    Args:
      name: the model's name in TF Serving, and its folder.
      destination: the folder of all models; `<workdir>/pushed` if none is given.
      keep: how many versions stay, the new one included.
      force: push although the evaluation did not bless; the bundle must answer all the same.
    """

    name: str = pydantic.Field("shortlist", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    destination: Path | None = None
    keep: int = pydantic.Field(5, ge=1)
    force: bool = False


class Pusher(Component):
    """Copies the SavedModel to `<destination>/<name>/<version>/`, the next whole number.

    A version appears whole or not at all: it is copied beside its place under a name that TF Serving ignores, made
    durable, and renamed. What is not blessed is not pushed, and the last good version stays.
    """

    output = PushedModel

    def __init__(self, config: PusherConfig | None = None, name: str = ""):
        self.config: PusherConfig = config or PusherConfig()
        super().__init__(self.config, name)

    def run(self, out: Path, evaluation: ModelEvaluation, infra: InfraBlessing, bundle: Bundle) -> None:
        """See `PushedModel` for what is written.

        Raises:
          ShortlistError: if the blessings are those of another model, or the destination cannot be written.
        """
        infra.refuse_unless_made_from(bundle)
        ranker = bundle.lineage["inputs"]["ranker"]
        evaluation.refuse_unless_made_from(Model(Path(ranker["uri"]), ranker["fingerprint"]))
        against = _against("The bundle does not work", infra.read_json("blessing.json"))
        against += [f"The bundle is not what was validated: {r}" for r in read_records(bundle.uri)[1]]
        doubts = _against("The evaluation does not bless it", evaluation.read_json("blessing.json"))
        pushed: dict[str, Any] = {"pushed": False, "reasons": against + doubts, "path": None, "version": None}
        if not against and (not doubts or self.config.force):
            home = (self.config.destination or out.parents[2] / "pushed").absolute() / self.config.name
            version = publish(bundle / "saved_model", home, self.config.keep)
            place, base = home / str(version), shlex.quote(str(home))
            name = self.config.name
            serve = [
                f"tensorflow_model_server --rest_api_port=8501 --model_name={name} --model_base_path={base}",
                f"docker run --rm -p 8501:8501 -v {base}:/models/{name} -e MODEL_NAME={name} tensorflow/serving",
            ]
            pushed |= {"pushed": True, "path": str(place), "version": version, "forced": bool(doubts), "serve": serve}
        (out / "pushed.json").write_text(json.dumps(pushed, indent=2))


def _against(verdict: str, blessing: dict[str, Any]) -> list[str]:
    """The reasons of what is not blessed, at least one."""
    if blessing["blessed"]:
        return []
    return [f"{verdict}: {reason}" for reason in blessing["reasons"]] or [f"{verdict}."]


def publish(model: Path, home: Path, keep: int) -> int:
    """Makes `model` the next version in `home` and removes all but the newest `keep` versions.

    Returns:
      The version.

    Raises:
      ShortlistError: if `home` cannot be written. Nothing is changed then.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        with locked(home / ".lock"):
            for name in (PARTIAL, REMOVED):
                shutil.rmtree(home / name, ignore_errors=True)
            version = max(versions(home), default=0) + 1
            try:
                shutil.copytree(model, home / PARTIAL)
                for path in [*(home / PARTIAL).rglob("*"), home / PARTIAL]:
                    sync(path)
            except OSError:
                shutil.rmtree(home / PARTIAL, ignore_errors=True)
                raise
            (home / PARTIAL).rename(home / str(version))
            sync(home)
            found = versions(home)
            for old in sorted(found)[:-keep]:
                if found[old].is_dir() and not found[old].is_symlink():
                    found[old].rename(home / REMOVED)
                    shutil.rmtree(home / REMOVED)
            return version
    except OSError as error:
        raise ShortlistError(
            f"`push.destination` must be a folder that can be written: {error.strerror or error}. The last version is "
            f"untouched; free some space or give another. Received: {home.parent}."
        ) from error


def versions(home: Path) -> dict[int, Path]:
    """What TF Serving takes for a version: the entries of `home` whose names are whole numbers."""
    return {int(path.name): path for path in home.iterdir() if re.fullmatch("[0-9]+", path.name)}
