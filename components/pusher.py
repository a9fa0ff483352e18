"""Publishes a blessed bundle where TF Serving looks for it."""

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from shortlist import ShortlistError
from shortlist.components._config import Config
from shortlist.components._files import locked, replace_file, sync
from shortlist.components._replay import read_records
from shortlist.components._serving_files import IMAGE, serving_files
from shortlist.components.artifacts import Bundle, InfraBlessing, Model, ModelEvaluation, PushedModel
from shortlist.components.pipeline import Component

PARTIAL, REMOVED, ROLLED_BACK = ".partial", ".removed", "rolled-back-"  # TF Serving looks at whole numbers only


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
    """Copies the SavedModel to `<destination>/<name>/<version>/`, the next whole number; beside it, how to serve it.

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
        records, broken = read_records(bundle.uri)
        against += [f"The bundle is not what was validated: {r}" for r in broken]
        doubts = _against("The evaluation does not bless it", evaluation.read_json("blessing.json"))
        pushed: dict[str, Any] = {"pushed": False, "reasons": against + doubts, "path": None, "version": None}
        if not against and (not doubts or self.config.force):
            home = (self.config.destination or out.parents[2] / "pushed").absolute() / self.config.name
            name = self.config.name
            files = serving_files(name, records, (bundle / "signatures.md").read_text("utf-8"))
            version = publish(bundle / "saved_model", home, self.config.keep, files)
            place, base = home / str(version), shlex.quote(str(home))
            serve = [
                f"tensorflow_model_server --rest_api_port=8501 --model_name={name} --model_base_path={base}",
                f"docker run --rm -p 8501:8501 -v {base}:/models/{name} -e MODEL_NAME={name} {IMAGE}",
                f"docker compose --file {shlex.quote(str(home / 'docker-compose.yaml'))} up",
            ]
            pushed |= {"pushed": True, "path": str(place), "version": version, "forced": bool(doubts), "serve": serve}
        (out / "pushed.json").write_text(json.dumps(pushed, indent=2))


def _against(verdict: str, blessing: dict[str, Any]) -> list[str]:
    """The reasons of what is not blessed, at least one."""
    if blessing["blessed"]:
        return []
    return [f"{verdict}: {reason}" for reason in blessing["reasons"]] or [f"{verdict}."]


def publish(model: Path, home: Path, keep: int, files: Mapping[str, str] | None = None) -> int:
    """Makes `model` the next version in `home`, writes `files` beside it, removes all but the newest `keep` versions.

    A number is never given twice, not even that of a version that was rolled back.

    Returns:
      The version.

    Raises:
      ShortlistError: if `home` cannot be written. The versions are as before then.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        with locked(home / ".lock"):
            for name in (PARTIAL, REMOVED):
                shutil.rmtree(home / name, ignore_errors=True)
            for left in home.glob(f".*{PARTIAL}"):  # of a process that was killed
                left.unlink(missing_ok=True)
            version = max([*versions(home), *versions(home, ROLLED_BACK)], default=0) + 1
            try:
                shutil.copytree(model, home / PARTIAL)
                for path in [*(home / PARTIAL).rglob("*"), home / PARTIAL]:
                    sync(path)
                for name, text in (files or {}).items():
                    replace_file(home / name, text)
            except OSError:
                shutil.rmtree(home / PARTIAL, ignore_errors=True)
                raise
            (home / PARTIAL).rename(home / str(version))
            sync(home)
            found = versions(home)
            kept = sorted(found)[-keep:]
            old = [found[number] for number in found if number not in kept]
            old += [path for number, path in versions(home, ROLLED_BACK).items() if number < kept[0]]
            for path in old:
                if path.is_dir() and not path.is_symlink():
                    path.rename(home / REMOVED)
                    shutil.rmtree(home / REMOVED)
            return version
    except OSError as error:
        raise ShortlistError(
            f"`push.destination` must be a folder that can be written: {error.strerror or error}. The last version is "
            f"untouched; free some space or give another. Received: {home.parent}."
        ) from error


def rollback(home: Path, to: int | None = None) -> tuple[list[int], int]:
    """Takes versions away from TF Serving: the newest one, or all that are newer than `to`.

    They stay as `rolled-back-<version>` until no version that old is kept.

    Returns:
      The versions taken away, newest first, and the one that is served now.

    Raises:
      ShortlistError: if there is no earlier version, or no version `to` among them, or `home` cannot be written.
    """
    try:
        if not home.is_dir():
            raise ShortlistError(f"`rollback` needs the folder of a pushed model's versions. Received: {home}.")
        with locked(home / ".lock"):
            found = versions(home)
            earlier = sorted(found)[:-1]
            there = ", ".join(map(str, sorted(found))) or "none"
            if not earlier:
                raise ShortlistError(
                    f"`rollback` needs an earlier version to go back to. Received: {home} with the versions: {there}."
                )
            target = earlier[-1] if to is None else to
            if target not in earlier:
                raise ShortlistError(
                    f"`--to` must be a version before the newest one. Received: {to}, with the versions: {there}."
                )
            taken = sorted((number for number in found if number > target), reverse=True)
            for number in taken:
                found[number].rename(home / f"{ROLLED_BACK}{number}")
            sync(home)
            return taken, target
    except OSError as error:
        raise ShortlistError(
            f"`rollback` needs a folder that can be written: {error.strerror or error}. Received: {home}."
        ) from error


def versions(home: Path, before: str = "") -> dict[int, Path]:
    """What TF Serving takes for a version: the entries of `home` whose names are whole numbers, after `before`."""
    pattern = re.compile(re.escape(before) + "([0-9]+)")
    found = ((pattern.fullmatch(path.name), path) for path in home.iterdir())
    return {int(match[1]): path for match, path in found if match}
