"""The comparison with context: nothing of a fold is seen before it is predicted, figures by hand, planted effects."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_cases import cli, refused

from shortlist import ShortlistError
from shortlist.components._config import parse
from shortlist.trainers import context_experiment
from shortlist.trainers._rating_methods import (
    ContextTwoTower,
    Factorization,
    ItemAverage,
    PostFiltered,
    Ratings,
    SplitFactorization,
    methods,
)
from shortlist.trainers.context_experiment import ContextExperiment, queries, read_ratings, run_experiment

FEW = {"folds": 3, "fold_seeds": [0], "inner_folds": 2, "trials": 2, "epochs": 20, "samples": 200}


def written(folder: Path, users: int = 20, items: int = 10) -> str:
    """Every user rates every item at home and out; half of the users give two stars more out, the others at home."""
    rng = np.random.default_rng(0)
    lines = ["user,item,rating,Place,Mood"]
    for user in range(users):
        for item in range(items):
            for place in ("home", "out"):
                effect = (2 * (user % 2) - 1) * (1 if place == "out" else -1)
                rating = 3 + effect + rng.normal(0, 0.3) + 0.5 * (item % 3 - 1)
                mood = rng.choice(["sad", "NA"])
                lines.append(f"u{user},i{item},{np.clip(round(rating), 1, 5)},{place},{mood}")
    (folder / "ratings.txt").write_text("\n".join(lines) + "\n")
    return f"carskit:{folder / 'ratings.txt'}"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("experiment")
    config = parse(ContextExperiment, {**FEW, "data": {"source": written(folder)}})
    return run_experiment(config, folder / "run"), folder / "run"


def test_what_uses_the_planted_context_is_better(planted: tuple[dict[str, Any], Path]) -> None:
    found, _ = planted
    differences = {d["method"]: d for d in found["differences"] if d["metric"] == "rmse"}
    assert set(found["methods"]) == {
        *("popularity", "item_average", "biased_mf", "camf_c", "camf_ci", "camf_cu", "camf_cuci", "camf_low_rank"),
        *("item_splitting", "user_splitting", "both_splitting", "post_filter", "two_tower"),
    }
    for name in ("camf_cu", "camf_cuci", "camf_low_rank", "user_splitting"):
        assert differences[name]["high"] < -0.05, name
        assert differences[name]["p_holm"] < 0.05
    for name in ("camf_ci", "item_splitting"):
        assert differences[name]["difference"] > differences["camf_cu"]["difference"] / 2, name
    assert set(differences) == set(found["methods"]) - {"popularity", "post_filter", "two_tower", "biased_mf"}
    assert (found["rows"], found["users"], found["items"], found["contexts"]) == (400, 20, 10, {"Place": 2, "Mood": 1})


def test_what_is_written_says_the_same(planted: tuple[dict[str, Any], Path]) -> None:
    found, folder = planted
    assert json.loads((folder / "context.json").read_text()) == found
    assert (folder / "context.png").read_bytes()[:4] == b"\x89PNG"
    report = (folder / "report.html").read_text()
    assert all(name in report for name in found["methods"])
    rows = pq.read_table(folder / "predictions.parquet").to_pandas()
    folds = context_experiment._dealt(400, 3, 0)
    for name in ("biased_mf", "camf_cu", "user_splitting"):
        error = rows[name] - rows["rating"]
        own = found["methods"][name]
        rmse = [float(np.sqrt((error[folds == k] ** 2).mean())) for k in range(3)]
        np.testing.assert_allclose(own["rmse_by_fold"][0], rmse)
        assert own["rmse"]["value"] == pytest.approx(np.mean(rmse))
        assert own["mae"]["value"] == pytest.approx(np.mean([error[folds == k].abs().mean() for k in range(3)]))
        assert own["rmse"]["low"] < own["rmse"]["value"] < own["rmse"]["high"]
        assert len(own["chosen"][0]) == 3
    assert found["methods"]["post_filter"]["chosen"] == found["methods"]["biased_mf"]["chosen"]


def test_the_rating_of_a_fold_changes_nothing_that_is_predicted_of_it(tmp_path: Path) -> None:
    config = parse(
        ContextExperiment, {**FEW, "data": {"source": written(tmp_path)}, "only": ["camf_c", "both_splitting"]}
    )
    data = read_ratings(config.data, tmp_path)
    folds = context_experiment._dealt(len(data.rating), 3, 0)
    changed = data.rating.copy()
    changed[folds == 1] = 6 - changed[folds == 1]
    answers = []
    for rating in (data.rating, changed):
        all_rows = Ratings(data.user, data.item, data.conditions, rating, data.users, data.items, data.contexts)
        train, test = all_rows.rows(folds != 1), all_rows.rows(folds == 1)
        for name, method in methods(data, 4.0, epochs=5).items():
            if name in config.only:
                settings = context_experiment._tune(method, train, config, 1)
                method.fit(train, settings)
                answers.append((settings, method.predict(test)))
    for (settings, before), (again, after) in zip(answers[:2], answers[2:], strict=True):
        assert settings == again
        np.testing.assert_array_equal(before, after)


def test_the_two_tower_ranks_what_a_user_likes_in_a_context() -> None:
    """A user likes one half of the items, and of these at each place every second one; two fifths are kept back."""
    user, item, place = (axis.ravel() for axis in np.meshgrid(range(16), range(12), range(2), indexing="ij"))
    likes = ((item < 6) == (user % 2 == 0)) & (item % 2 == place)
    rng = np.random.default_rng(0)
    train = rng.random(len(user)) < 0.6
    rating = np.where(likes, 5.0, 1.0)
    data = Ratings(user, item, place[:, np.newaxis] + 1, rating, 16, 12, {"place": 2})
    method = ContextTwoTower(data, 4.0, epochs=60, batch_size=32)
    scores = []
    for _ in range(2):  # the second time from the start again
        method.fit(data.rows(train), {})
        scores.append(method.scores(np.array([0, 0, 1]), np.array([[1], [2], [0]]), 12))
    np.testing.assert_array_equal(scores[0], scores[1])
    for row, p in enumerate((0, 1)):
        own = (user == 0) & (place == p)
        new, good = ~train[own], likes[own]
        assert (good & new).any()
        assert scores[0][row, good & new].min() > scores[0][row, ~good].max()
    assert not np.allclose(scores[0][2], scores[0][0])


def small() -> Ratings:
    rng = np.random.default_rng(0)
    user, item = np.divmod(np.arange(48) % 24, 6)
    conditions = np.stack([rng.integers(0, 3, 48), 1 + np.arange(48) // 24], axis=1)
    return Ratings(user, item, conditions, rng.integers(1, 6, 48).astype(float), 4, 6, {"mood": 2, "place": 2})


def test_the_items_of_a_query_by_hand() -> None:
    def ratings(rows: list[tuple[int, int, int, float]]) -> Ratings:
        user, item, condition, rating = (np.array(column) for column in zip(*rows, strict=True))
        return Ratings(user, item, condition[:, np.newaxis], rating, 3, 5, {"place": 2})

    train = ratings([(0, 1, 1, 5), (0, 2, 2, 1), (1, 3, 1, 4), (0, 4, 1, 2)])
    test = ratings([(0, 0, 1, 5), (0, 3, 1, 4), (0, 2, 1, 3), (1, 0, 2, 4), (2, 1, 1, 1), (0, 3, 1, 5), (0, 4, 1, 4)])
    user, conditions, offsets, targets, (row, item) = queries(train, test, 4)
    assert user.tolist() == [0, 1]  # user 2 liked nothing
    assert conditions.tolist() == [[1], [2]]
    assert offsets.tolist() == [0, 3, 4]
    assert targets.tolist() == [0, 3, 4, 0]  # item 3 of user 0 is one target; item 4 is asked for again
    assert (row.tolist(), item.tolist()) == ([0], [1])  # seen in this context; item 2 was seen in another


@pytest.mark.parametrize("name", ["item_average", "biased_mf", "camf_cuci", "camf_low_rank", "both_splitting"])
def test_scores_are_the_predictions_that_are_not_clipped(name: str) -> None:
    data = small()
    method = methods(data, 4.0, epochs=5)[name]
    method.fit(
        data,
        {
            **method.draw(np.random.default_rng(1)),
            **({"alpha": 0.999, "min_ratings": 2, "criterion": "t"} if "splitting" in name else {}),
        },
    )
    if isinstance(method, SplitFactorization):
        assert all(len(splits.owner) for splits in method.splits.values())
    if isinstance(method, Factorization):
        method.range = (-9.0, 9.0)
    scores = method.scores(data.user, data.conditions, data.items)
    assert scores.shape == (48, 6)
    np.testing.assert_allclose(scores[np.arange(48), data.item], method.predict(data), rtol=1e-5, atol=1e-5)


def test_item_average_by_hand() -> None:
    data = small()
    method = ItemAverage()
    method.fit(data, {"shrinkage": 2.0})
    own = data.rating[data.item == 3]
    expected = data.rating.mean() + (own - data.rating.mean()).sum() / (len(own) + 2)
    assert method.predict(data)[3] == pytest.approx(expected)


def test_a_fit_forgets_the_one_before() -> None:
    data = small()
    method = methods(data, 4.0, epochs=5)["camf_cu"]
    settings = [method.draw(np.random.default_rng(seed)) for seed in (0, 1)]
    found = []
    for chosen in (*settings, settings[0]):
        method.fit(data, chosen)
        found.append(method.predict(data))
    np.testing.assert_array_equal(found[2], found[0])
    assert not np.allclose(found[1], found[0])


def test_the_post_filter_prefers_what_is_liked_in_the_context() -> None:
    data = small()
    rating = np.where(data.conditions[:, 1] == 1 + data.item % 2, 5.0, 1.0)
    data = Ratings(data.user, data.item, data.conditions, rating, data.users, data.items, data.contexts)
    method = PostFiltered(Factorization(data, epochs=5), threshold=4.0)
    method.fit(data, method.draw(np.random.default_rng(0)))
    place = np.array([[0, 1], [0, 2]])
    scores = method.scores(np.zeros(2, int), place, data.items)
    assert scores[0, ::2].min() > scores[0, 1::2].max()
    assert scores[1, 1::2].min() > scores[1, ::2].max()
    np.testing.assert_array_equal(method.predict(data), method.base.predict(data))


def test_what_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path)
    for settings, message in (
        ({"only": ["camf"]}, "`only` must name methods: popularity, item_average, biased_mf, camf_c, "),
        ({"folds": 200}, "`folds` must leave ratings for each of 200 times 3 folds. Received: 400 ratings."),
    ):
        config = parse(ContextExperiment, {"data": {"source": source}, **settings})
        with pytest.raises(ShortlistError) as error:
            run_experiment(config, tmp_path / "run")
        assert str(error.value).startswith(message)
    (tmp_path / "no.txt").write_text("user,item,rating\n1,2,3\n")
    message = refused("experiment", "context", "--data", f"carskit:{tmp_path / 'no.txt'}", "--workdir", tmp_path / "r")
    assert message == (
        "An experiment with context needs ratings and at least one column `context_<dimension>`. Received: 1 ratings "
        "and the columns user, item, rating."
    )
    (tmp_path / "na.txt").write_text("user,item,rating,Place\n1,2,3,NA\n")
    message = refused("experiment", "context", "--data", f"carskit:{tmp_path / 'na.txt'}", "--workdir", tmp_path / "r")
    assert message == "`context_Place` must be known in some row. Received: none of 1."


def test_the_command_prints_the_table_and_where_the_report_is(tmp_path: Path) -> None:
    few = [f"--set={name}={json.dumps(value)}" for name, value in {**FEW, "only": ["camf_cu"], "trials": 1}.items()]
    run = tmp_path / "run"
    result = cli("experiment", "context", "--data", written(tmp_path), "--workdir", run, "--quick", *few)
    assert result.exit_code == 0, result.output
    assert "camf_cu" in result.stdout
    assert f"Report: {run / 'report.html'}" in result.stdout
    assert set(json.loads((run / "context.json").read_text())["methods"]) == {"biased_mf", "camf_cu"}
    assert "Example: shortlist experiment context" in " ".join(cli("experiment", "context", "--help").stdout.split())
