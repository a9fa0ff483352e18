"""An epoch on rows that stay on disk: its loss is that of an epoch in memory, in whatever order the users lie."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tables import encode, row, write_splits

from shortlist.components import _batches, transform
from shortlist.components._examples import StreamedExamples
from shortlist.components._queries import EncodedData
from shortlist.components._stored_rows import StoredRows
from shortlist.components.artifacts import Encoded, Model
from shortlist.trainers import content_based, two_tower
from shortlist.trainers._common import next_item_batches

USERS, EACH, KINDS, PER_KIND = 240, 12, 4, 12
SETTINGS = {
    "embedding_dim": 8,
    "history_length": 4,
    "long_history_length": 0,
    "dropout": 0.0,
    "batch_size": 64,
    "examples_per_user": 8,
}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """Users in the order of their taste, one kind of item each: an order that must not be that of training."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        kind = user * KINDS // USERS
        items = rng.choice(PER_KIND, EACH, replace=False)
        rows += [row(f"u{user:03}", f"kind {kind} item {i}", 1000 * n) for n, i in enumerate(items)]
    items = [{"item": f"kind {k} item {i}", "genres": [f"g{k}"]} for k in range(KINDS) for i in range(PER_KIND)]
    with pytest.MonkeyPatch.context() as patch:
        for module in (_batches, transform):
            patch.setattr(module, "GROUP", EACH)
        folder = tmp_path_factory.mktemp("streamed")
        return encode(write_splits(folder / "s", {"train": rows}, items))


def losses(data: EncodedData, seed: int, window: int = 0) -> list[float]:
    """The mean of all batches, of three epochs each; in memory, or on disk with windows of so many rows."""
    config = two_tower.Config(**SETTINGS, epochs=3, window_rows=window or 1, seed=seed)
    examples = two_tower.make_examples(config, data, StoredRows(data, ["train"]) if window else data.rows("train"))
    tf.keras.utils.set_random_seed(seed)
    model = two_tower.make_model(config, data, examples)
    batches, steps = next_item_batches(examples, config, 0)
    of_batches: list[float] = []
    record = tf.keras.callbacks.LambdaCallback(on_batch_end=lambda number, logs: of_batches.append(logs["loss"]))
    model.fit(batches, epochs=config.epochs, steps_per_epoch=steps, verbose=0, callbacks=[record])
    return np.reshape(of_batches, (config.epochs, steps)).mean(axis=1).tolist()


def test_the_loss_of_an_epoch_is_that_in_memory(encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window has 60 pieces here, as with the shipped sizes (4 M rows of row groups of 65,536)."""
    data, window = EncodedData(encoded), USERS * EACH // 4
    memory = np.array([losses(data, seed) for seed in range(3)])
    streamed = np.array([losses(data, seed, window) for seed in range(3)])
    np.testing.assert_allclose(streamed.mean(axis=0), memory.mean(axis=0), rtol=0.01)

    # The same windows in the order of the part, which hold one taste each, have another loss.
    inside = StoredRows.windows
    monkeypatch.setattr(StoredRows, "windows", lambda self, size, rng=None: inside(self, size))
    ordered = np.array(losses(data, 0, window))
    assert (ordered > 1.2 * memory.mean(axis=0)).all()


def test_examples_on_disk_make_the_same_model(encoded: Encoded) -> None:
    """What is known of all examples before the first: depth, counts, quantiles of their age."""
    data = EncodedData(encoded)
    config = two_tower.Config(**SETTINGS, example_age=True, window_rows=500)
    stored = two_tower.make_examples(config, data, StoredRows(data, ["train"]))
    plain = two_tower.make_examples(config, data, data.rows("train"))
    assert isinstance(stored, StreamedExamples)
    ours, theirs = (two_tower.make_model(config, data, examples) for examples in (stored, plain))
    a, b = ours.get_config(), theirs.get_config()
    assert {**a, "name": ""} == {**b, "name": ""}
    np.testing.assert_allclose(ours.loss_layer.log_share.numpy(), theirs.loss_layer.log_share.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(ours.trained.numpy(), theirs.trained.numpy())


def test_what_is_left_out_is_left_out_of_rows_on_disk_too(encoded: Encoded, tmp_path: Path) -> None:
    _, rows = two_tower.load_stored(two_tower.Config(leave_out=0.5, window_rows=500), {"encoded": encoded})
    assert isinstance(rows, StoredRows)
    kept = rows.read(np.arange(len(rows)))
    _, expected = two_tower.load_stored(two_tower.Config(leave_out=0.5), {"encoded": encoded})
    for name, values in expected.items():
        np.testing.assert_array_equal(kept[name], values)
    assert len(kept["item"]) == USERS * EACH // 2

    small = content_based.Config(window_rows=500, epochs=1, examples_per_user=2, hidden_units=(4,), title_tokens=0)
    content_based.train(small, {"encoded": encoded}, tmp_path)
    assert np.isfinite(Model(tmp_path, "").read_json("model.json")["history"]["loss"]).all()
