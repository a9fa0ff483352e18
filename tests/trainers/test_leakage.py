"""No leakage, through the whole chain: what is fitted on a split does not depend on a later one, bit for bit.

Every step is trained again on splits of which one was rewritten: rows invented (with new users and items), permuted and
deleted. What differs is named; the same comparison must name the leaks that are planted at the end.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
import tensorflow as tf

import shortlist.components._first_stage as first_stage
import shortlist.components.candidate_generator as candidate_generator
from shortlist.components._first_stage import ShortlistConfig, describe_catalogue
from shortlist.components._queries import EncodedData
from shortlist.components.artifacts import Candidates, Splits
from shortlist.components.candidate_generator import CandidateGenerator
from shortlist.components.pipeline import Component, Node, Pipeline
from shortlist.components.retrieval_index import RetrievalIndex
from shortlist.components.trainer import Trainer
from shortlist.components.transform import Transform, TransformConfig
from shortlist.trainers import fresh, hybrid, similar_users, two_tower, wals, weighted_logistic

Parts = dict[str, list[tables.Row]]
SHARES = {"train": 9, "rank_train": 3, "validation": 2, "test": 2}
USERS, ITEMS, DAY = 24, 40, 86_400


def original() -> Parts:
    rng = np.random.default_rng(5)
    parts: Parts = {name: [] for name in SHARES}
    for user in range(USERS):
        own = np.arange(user % 2, ITEMS, 2)
        watched = iter(rng.choice(own, sum(SHARES.values()), replace=False))
        time = 1_500_000_000 + user * DAY
        for name, count in SHARES.items():
            for _ in range(count):
                time += int(rng.integers(1, 30 * DAY))
                rating = float(rng.integers(1, 6))
                parts[name].append(tables.row(f"user {user:02}", f"item {next(watched)}", time, rating=rating))
    return parts


def rewritten(split: str) -> Parts:
    """The same with another `split`; only the time at which the split begins stays, for those who keep a row in it."""
    rng = np.random.default_rng(6)
    parts = original()
    rows = [dict(r) for r in parts[split] if r["user"] not in ("user 03", "user 10")]
    for r, other in zip(rows, rng.permutation(len(rows)), strict=True):
        r |= {"item": parts[split][other]["item"], "rating": float(rng.integers(1, 6)), "watch_time": 7.0}
    kept = [r for n, r in enumerate(rows) if not n or rows[n - 1]["user"] != r["user"] or rng.random() < 0.5]
    users = sorted({r["user"] for r in kept})
    late = {u: max(r["timestamp"] for r in kept if r["user"] == u) for u in users}
    kept += [tables.row(u, f"new {n % 5}", late[u] + 60 * n * DAY, rating=5.0) for n, u in enumerate(users[::2])]
    kept += [tables.row(f"user {n:02}b", f"item {i}", 1_400_000_000 + i * DAY) for n in (2, 7) for i in range(9)]
    return {**parts, split: kept}


class Given(Component):
    """Splits that are there already."""

    output = Splits

    def __init__(self, parts: Parts):
        super().__init__()
        self.parts = parts

    def external(self) -> Any:
        return hashlib.sha256(json.dumps(self.parts).encode()).hexdigest()

    def run(self, out: Path) -> None:
        items = [
            {"item": f"item {n}", "title": f"T{n}", "year": 1980 + n, "genres": [f"g{n % 3}"]} for n in range(ITEMS)
        ]
        tables.write_splits(out, self.parts, items)


class Chain:
    """Everything that is fitted, in one pipeline."""

    def __init__(self, workdir: Path, parts: Parts):
        self.pipeline = Pipeline(workdir)
        self.given = self.pipeline.add(Given(parts))
        self.encoded = self.pipeline.add(Transform(), self.given)
        self.sources = {
            "wals": self.source("wals", wals.Config(embedding_dim=4, epochs=2)),
            "two_tower": self.source("two_tower", two_tower.Config(embedding_dim=4, epochs=2, batch_size=64)),
            "fresh": self.source("fresh", fresh.Config()),
            "similar_users": self.source("similar_users", similar_users.Config(neighbours=3), "wals"),
        }
        early = hybrid.Config().held_back
        self.train("wals.early", wals.Config(embedding_dim=4, epochs=2, leave_out=early))
        self.sources["hybrid"] = self.source("hybrid", hybrid.Config(of=("wals.early",), epochs=2), "wals.early")
        self.candidates("CandidateGenerator", CandidateGenerator(ShortlistConfig(size=16, quota=12)))

    def train(self, name: str, config: Any, of: str = "") -> Node:
        trainer = Trainer(config, name, f"{type(config).__module__}:train")
        return self.pipeline.add(trainer, self.encoded, **({"of": {of: Trainer.step_of(of)}} if of else {}))

    def source(self, name: str, config: Any, of: str = "") -> Node:
        return self.pipeline.add(RetrievalIndex(name), self.train(name, config, of), self.encoded)

    def candidates(self, name: str, generator: CandidateGenerator) -> None:
        found = self.pipeline.add(generator, self.encoded, self.sources)
        config = weighted_logistic.Config(hidden_units=(4,), epochs=2)
        trainer = Trainer(config, f"ranker of {name}", "shortlist.trainers.weighted_logistic:train")
        self.pipeline.add(trainer, self.encoded, found)

    def fitted(self) -> dict[str, Any]:
        """By name, everything that must not know the future."""
        artifacts = self.pipeline.run()
        found: dict[str, Any] = {}
        for step, artifact in artifacts.items():
            if step.startswith("Transform"):
                for name in ("items.txt", "users.txt", "genres.txt", "state.json", "items.parquet"):
                    found[f"{step}: {name}"] = (artifact / name).read_bytes()
            elif step.startswith("Trainer"):
                served = tf.saved_model.load(str(artifact / "serving"))
                found[step] = {str(n): variable.numpy() for n, variable in enumerate(served.state)}
            elif step.startswith("CandidateGenerator"):
                ids = EncodedData(artifacts["Transform"]).users["id"]
                for split in Candidates.NAMES:
                    with np.load(artifact / f"{split}.npz") as table:
                        found[f"{step}: {split}"] = by_user(ids, table, ("items", "fused", "features"))
                        found[f"{step}: labels of {split}"] = by_user(ids, table, ("label", "weight"))
        return found


def by_user(ids: np.ndarray, table: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {f"{n} of {ids[key]}": table[n][q] for q, key in enumerate(table["user_key"]) for n in names}


def differences(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    """The names of what isn't the same bit for bit."""

    def same(x: Any, y: Any) -> bool:
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(same(x[key], y[key]) for key in x)
        return x == y if isinstance(x, bytes) else x.dtype == y.dtype and x.tobytes() == y.tobytes()

    assert a.keys() == b.keys()
    return {name for name in a if not same(a[name], b[name])}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("leakage")


@pytest.fixture(scope="module")
def base(workdir: Path) -> dict[str, Any]:
    return Chain(workdir / "original", original()).fitted()


def test_the_same_splits_give_the_same_bits(workdir: Path, base: dict[str, Any]) -> None:
    assert sum(name.startswith("Trainer") for name in base) == 7
    assert all(len(base[name]) > 1 for name in base if name.startswith("Trainer"))
    assert differences(base, Chain(workdir / "again", original()).fitted()) == set()


@pytest.mark.parametrize("split", Candidates.NAMES)
def test_a_split_changes_nothing_that_came_before(workdir: Path, base: dict[str, Any], split: str) -> None:
    other = Chain(workdir / split, rewritten(split)).fitted()
    found = differences(base, other)
    generator, ranker = "CandidateGenerator: ", "Trainer.ranker of CandidateGenerator"
    later = Candidates.NAMES[Candidates.NAMES.index(split) + 1 :]
    own = {generator + split, f"{generator}labels of {split}"}  # its own queries: users come and go
    after = {generator + name for s in later for name in (s, f"labels of {s}")}
    assert found == own | after | ({ranker} if split == "rank_train" else set())

    # A query knows nothing of its own split but when it begins.
    ours, theirs = base[generator + split], other[generator + split]
    both = ours.keys() & theirs.keys()
    assert len(both) == 3 * (USERS - 2)
    for name in both:
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_planted_leaks_are_named(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(data: EncodedData, recent_years: float) -> Any:
        monkeypatch.setitem(data.state, "fitted_on", "all")
        return describe_catalogue(data, recent_years)

    chains = [Chain(workdir / "original", original()), Chain(workdir / "test", rewritten("test"))]
    for chain in chains:
        chain.pipeline.run()  # what doesn't leak is done before the leak is there
    for module in (first_stage, candidate_generator):
        monkeypatch.setattr(module, "describe_catalogue", leaky)
    for chain in chains:
        chain.pipeline.add(Transform(TransformConfig(fit_on="all"), "leaky"), chain.given)
        chain.source("leaky", wals.Config(embedding_dim=4, epochs=2, train_on="all"))
        generator = CandidateGenerator(ShortlistConfig(size=16, quota=12), "leaky")
        chain.candidates("leaky", generator)
    found = differences(*(chain.fitted() for chain in chains))
    assert {name for name in found if "leaky" in name} >= {
        *(f"Transform.leaky: {name}" for name in ("items.txt", "users.txt", "state.json", "items.parquet")),
        "Trainer.leaky",
        "Trainer.ranker of leaky",
        "CandidateGenerator.leaky: rank_train",
        "CandidateGenerator.leaky: validation",
    }
    assert {name for name in found if "leaky" not in name and "test" not in name} == set()
