"""What a request says reaches the two-tower: in its examples, its parameters and its answers."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tables import encode, row, write_splits

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData, build_queries
from shortlist.trainers.two_tower import Config, make_examples, make_model, pretrain_words, train

PLACES = ("home", "train")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EncodedData:
    """40 users watch items of the first half at home, of the second on the train, whoever they are."""
    rng = np.random.default_rng(0)
    parts: dict[str, list[dict[str, object]]] = {"train": [], "validation": []}
    for user in range(40):
        for n in range(12):
            place = int(rng.integers(2))
            item = f"i{place * 10 + int(rng.integers(10))}"
            said = {"context_place": PLACES[place], "query": f"{PLACES[place]} video"}
            parts["train" if n < 10 else "validation"].append(row(f"u{user}", item, 1000 * user + n, **said))
    users = {"age": {f"u{n}": 20.0 + n for n in range(40)}, "gender": {f"u{n}": "dw"[n % 2] for n in range(40)}}
    splits = write_splits(tmp_path_factory.mktemp("request") / "s", parts, user_columns=users)
    return EncodedData(encode(splits))


def test_an_example_says_what_its_label_s_row_does(data: EncodedData) -> None:
    rows = data.rows("train")
    examples = make_examples(Config(), data, rows)
    found = examples.at(examples.usable)
    asked = rows["context_place"][examples.usable]  # every row is a positive of a known item at a time of its own
    np.testing.assert_array_equal(found["context_place"], asked)
    np.testing.assert_array_equal(
        found["user_age"], 20 + np.array([int(data.users["id"][k][1:]) for k in rows["user_key"][examples.usable]])
    )
    home = (data.artifact / "context_place.txt").read_text().splitlines().index("home") + 2
    words = (data.artifact / "query.txt").read_text().splitlines()
    first = np.array([words[n - 2] for n in found["query"][:, 0]])
    np.testing.assert_array_equal(first == "home", asked == home)
    assert not make_examples(Config(request=False), data, rows).further


def test_the_model_has_a_table_for_each_and_learns_what_they_tell(data: EncodedData, tmp_path: Path) -> None:
    config = Config(embedding_dim=8, dropout=0.0, epochs=4, batch_size=64, content=False, request_time=False)
    model = make_model(config, data, make_examples(config, data, data.rows("train")))
    assert model.categories == (("user_gender", 4), ("context_place", 4))
    assert (model.numbers, model.num_tokens) == (("user_age",), 5)
    np.testing.assert_allclose(model.quantiles.boundaries.numpy()[0, [0, -1]], [20, 59])

    train(config, {"encoded": data.artifact}, tmp_path)
    loaded = tf.saved_model.load(str(tmp_path / "serving"))
    ((_, batch),) = build_queries(data, "validation").batches(100)
    query = {name: tf.constant(value) for name, value in batch.items() if name != "exclude"}
    item = data.items["id"]
    of_home = np.array([i != "" and int(i[1:]) < 10 for i in item])
    vocabulary = (data.artifact / "context_place.txt").read_text().splitlines()
    for place, half in zip(PLACES, (of_home, ~of_home), strict=True):
        where = tf.fill([len(batch["user"])], vocabulary.index(place) + 2)
        words = tf.zeros_like(query["query"])  # the place alone
        scores = loaded.score_items({**query, "context_place": where, "query": words}).numpy()[:, 2:]
        top = scores.argsort(axis=1)[:, -5:]
        assert half[2:][top].mean() > 0.9


def test_words_begin_by_what_is_searched_for_after_them(tmp_path: Path) -> None:
    """Each of 60 users searches for a word of one half, then for the name of the half: words of a half come near."""
    rng = np.random.default_rng(0)
    rows, halves = [], (("alien", "robot", "space"), ("kiss", "love", "wedding"))
    for user in range(60):
        half = user % 2
        searches = [rng.choice(halves[half]), ("future", "heart")[half]] * 3
        rows += [row(f"u{user}", f"i{rng.integers(9)}", n, query=str(said)) for n, said in enumerate(searches)]
    later = [row("u0", "i1", 100, query="wedding"), row("u0", "i1", 101, query="future")]
    data = EncodedData(encode(write_splits(tmp_path / "s", {"train": rows, "test": later})))
    config = Config(embedding_dim=16, query_pretraining=40, batch_size=64, epochs=1)
    model = make_model(config, data, make_examples(config, data, data.rows("train")))
    begin = model.token_table.numpy()
    pretrain_words(model, config, data, data.rows("train"))
    found = model.token_table.numpy()
    assert np.square(found).mean() == pytest.approx(np.square(begin).mean(), rel=1e-4)
    place = data.vocabulary("query")
    near = [found[[place.index(word) + 2 for word in half]] for half in halves]
    unit = [own / np.linalg.norm(own, axis=1, keepdims=True) for own in near]
    assert (unit[0] @ unit[0].T).min() > 0.5
    assert (unit[0] @ unit[1].T).max() < 0.3

    train(config, {"encoded": data.artifact}, tmp_path)
    assert "query_pretraining" in (tmp_path / "model.json").read_text()
    silent = EncodedData(encode(write_splits(tmp_path / "t", {"train": [{**r, "query": "love"} for r in rows]})))
    for of, inputs in ((silent, config), (data, config.model_copy(update={"request": False}))):
        with pytest.raises(ShortlistError, match=r"^`query_pretraining` learns which words .* Received: query_pretra"):
            pretrain_words(
                make_model(inputs, of, make_examples(inputs, of, of.rows("train"))), inputs, of, of.rows("train")
            )
