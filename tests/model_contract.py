"""What every model of the zoo must do. A test class inherits `ModelContract` and says how to make its model.

    class TestFoo(ModelContract):
        refused = [({"num_items": 0}, "`num_items` must be an integer of at least 1. Received: num_items=0.")]

        def make(self): ...   # fitted on little data, seeded; the same every time
        def query(self): ...  # a Query of at least two rows, as NumPy arrays

A ranker overrides `spec`, `scores` and `pad` as well. A model trained by gradients inherits `TrainableContract`.
"""

import doctest
import inspect
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.models._base import QUERY_SPEC, Factorized

FRESH = """
import importlib.abc, importlib.util, pickle, sys
from pathlib import Path

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "shortlist":
            raise ImportError("shortlist is hidden")

hidden = Hidden()
sys.meta_path.insert(0, hidden)
import tensorflow as tf
tf.config.experimental.enable_op_determinism()
folder, test_file, test_class = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
inputs = tf.nest.map_structure(tf.constant, pickle.loads((folder / "inputs.pickle").read_bytes()))
served = tf.saved_model.load(str(folder / "serving"))
answers = {"served": served.scores(inputs).numpy()}
assert "shortlist" not in sys.modules

sys.meta_path.remove(hidden)
import shortlist.models
tf.random.set_seed(0)
model = tf.keras.models.load_model(folder / "model.keras")
sys.path.insert(0, sys.argv[4])
spec = importlib.util.spec_from_file_location("contract_case", test_file)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
case = getattr(module, test_class)()
answers["loaded"] = case.scores(model, inputs).numpy()
answers["made_again"] = case.scores(case.make(), inputs).numpy()
(folder / "answers.pickle").write_bytes(pickle.dumps(answers))
"""


class ModelContract:
    refused: ClassVar[list[tuple[dict[str, Any], str]]] = []
    """Constructor arguments, put over those of `make`, each with the whole error that they must raise."""

    tolerance: ClassVar[float] = 1e-6
    """Relative, between processes, and absolute for scores below 1."""

    leaves_out: ClassVar[bool] = False
    """Whether the model leaves items out, with a score of −∞."""

    def make(self) -> tf.keras.Model:
        raise NotImplementedError

    def query(self) -> Any:
        raise NotImplementedError

    def spec(self) -> Any:
        """What the exported function takes."""
        return QUERY_SPEC

    def scores(self, model: tf.keras.Model, inputs: Any) -> tf.Tensor:
        return model.score_items(inputs)

    def pad(self, inputs: Any) -> Any:
        """The same inputs, with padding that must not matter to the scores that were there before."""
        wider = {name: tf.pad(inputs[name], [[0, 0], [0, 3]]) for name in ("history", "history_time")}
        return {**inputs, **wider}

    @pytest.fixture(scope="class")
    def model(self) -> tf.keras.Model:
        return self.make()

    @pytest.fixture(scope="class")
    def inputs(self) -> Any:
        return tf.nest.map_structure(lambda x, spec: tf.constant(x, spec.dtype), self.query(), self.spec())

    @pytest.fixture(scope="class")
    def fresh(self, model: tf.keras.Model, inputs: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        """The scores of the exported, the saved and a newly made model, each in a process that knows nothing."""
        folder = tmp_path_factory.mktemp("fresh")
        model.save(folder / "model.keras")
        exported = tf.Module()
        exported.weights = model.variables
        exported.scores = tf.function(lambda x: self.scores(model, x), input_signature=[self.spec()])
        tf.saved_model.save(exported, str(folder / "serving"))
        (folder / "inputs.pickle").write_bytes(pickle.dumps(tf.nest.map_structure(lambda x: x.numpy(), inputs)))
        environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
        case = [inspect.getfile(type(self)), type(self).__name__, str(Path(__file__).parent)]
        done = subprocess.run(
            [sys.executable, "-c", FRESH, str(folder), *case],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return pickle.loads((folder / "answers.pickle").read_bytes())

    @pytest.mark.parametrize("answer", ["served", "loaded", "made_again"])
    def test_same_scores_in_a_fresh_process(
        self, model: tf.keras.Model, inputs: Any, fresh: dict[str, Any], answer: str
    ) -> None:
        """`served` runs where shortlist cannot be imported; all three run with op determinism on."""
        expected = self.scores(model, inputs).numpy()
        np.testing.assert_allclose(fresh[answer], expected, rtol=self.tolerance, atol=self.tolerance)

    def test_arguments_are_attributes_and_survive_the_config(self, model: tf.keras.Model) -> None:
        parameters = inspect.signature(type(model).__init__).parameters.values()
        arguments = [p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD]
        config = json.loads(json.dumps(model.get_config()))
        restored = type(model).from_config(config)
        for name in arguments:
            assert name in config, f"{name} is not in the config"
            assert getattr(restored, name) == getattr(model, name), name
        assert json.loads(json.dumps(restored.get_config())) == config

    def test_refuses_bad_arguments(self, model: tf.keras.Model) -> None:
        assert self.refused, "say which constructor arguments are refused"
        for bad, text in self.refused:
            with pytest.raises(ShortlistError) as error:
                type(model)(**{**model.get_config(), **bad})
            assert str(error.value) == text

    def test_scores_are_finite_float32_rows(self, model: tf.keras.Model, inputs: Any) -> None:
        scores = self.scores(model, inputs)
        assert scores.dtype == tf.float32
        assert scores.shape.rank == 2
        assert scores.shape[0] == tf.nest.flatten(inputs)[0].shape[0] >= 2
        out = np.isneginf(scores.numpy())
        assert np.isfinite(scores.numpy()[~out]).all()
        assert out.any() == self.leaves_out
        assert len(np.unique(scores)) > 1, "a contract that compares constant scores proves nothing"

    def test_call_gives_the_scores(self, model: tf.keras.Model, inputs: Any) -> None:
        np.testing.assert_array_equal(model(inputs), self.scores(model, inputs))

    def test_padding_changes_nothing(self, model: tf.keras.Model, inputs: Any) -> None:
        expected = self.scores(model, inputs).numpy()
        padded = self.scores(model, self.pad(inputs)).numpy()[:, : expected.shape[1]]
        np.testing.assert_allclose(padded, expected, rtol=1e-5, atol=1e-6)

    def test_one_row_at_a_time_gives_the_same(self, model: tf.keras.Model, inputs: Any) -> None:
        expected = self.scores(model, inputs).numpy()
        for row, line in enumerate(expected):
            alone = tf.nest.map_structure(lambda x, row=row: x[row : row + 1], inputs)
            np.testing.assert_allclose(self.scores(model, alone)[0], line, rtol=1e-5, atol=1e-6)

    def test_scores_are_the_dot_products(self, model: tf.keras.Model, inputs: Any) -> None:
        if isinstance(model, Factorized):
            products = model.embed_query(inputs).numpy() @ model.item_vectors().numpy().T
            np.testing.assert_allclose(self.scores(model, inputs), products, rtol=1e-5, atol=1e-6)
        else:
            assert not hasattr(model, "item_vectors"), "half of the protocol is none"

    def test_example_of_the_docstring_runs(self, model: tf.keras.Model) -> None:
        names = {**vars(sys.modules[type(model).__module__])}
        examples = doctest.DocTestFinder(recurse=False).find(type(model), type(model).__name__, globs=names)
        assert [e for e in examples if e.examples], "the docstring has no example"
        for example in examples:
            report: list[str] = []
            doctest.DocTestRunner(verbose=False).run(example, out=report.append)
            assert not report, "".join(report)


class TrainableContract(ModelContract):
    def loss(self, model: tf.keras.Model) -> tf.Tensor:
        """The training loss on some batch, the same every time (no dropout)."""
        raise NotImplementedError

    def test_gradients_reach_every_weight_and_agree_with_finite_differences(self) -> None:
        """Along the gradient, at random weights, where no unit stands exactly on the kink of a ReLU."""
        model, rng = self.make(), np.random.default_rng(0)
        weights = model.trainable_variables
        start = [rng.normal(0, 0.5, w.shape).astype(np.float32) for w in weights]
        for weight, value in zip(weights, start, strict=True):
            weight.assign(value)
        with tf.GradientTape() as tape:
            loss = self.loss(model)
        gradients = tape.gradient(loss, weights)
        assert [w.name for w, g in zip(weights, gradients, strict=True) if g is None] == []
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        assert [w.name for w, g in zip(weights, gradients, strict=True) if not np.any(g)] == []
        norm = tf.linalg.global_norm(gradients)

        def loss_at(step: float) -> float:
            for weight, value, gradient in zip(weights, start, gradients, strict=True):
                weight.assign(value + step * gradient / norm)
            return float(self.loss(model))

        step = 2e-3
        slope = (loss_at(step) - loss_at(-step)) / (2 * step)
        np.testing.assert_allclose(slope, norm, rtol=2e-2)
