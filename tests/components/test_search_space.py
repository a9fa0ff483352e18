"""What a search file may say, and what becomes of a setting on its way to KerasTuner and back."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras_tuner
import pytest
import tomllib
from hypothesis import given
from hypothesis import strategies as st

from shortlist import ShortlistError
from shortlist.components._config import Config, parse
from shortlist.components._search_space import SearchSpace, parse_space


class Model(Config):
    rate: float = 0.1
    decay: float = 0.0
    layers: tuple[int, ...] = (64,)
    epochs: int = 9
    size: int = 64
    smooth: bool = False
    loss: str = "softmax"
    cap: float | None = None
    days: int | None = 90


def value_of(name: str, changes: Mapping[str, Any]) -> Any:
    config = parse(Model, changes, "the model")
    return getattr(config, name) if name in Model.model_fields else parse(Model, {name: 1}, "the model")


def space(tables: str, fixed: tuple[str, ...] = (), **given: Any) -> SearchSpace:
    def here(name: str, changes: Mapping[str, Any]) -> Any:
        return value_of(name, {**given, **changes})

    return parse_space(tomllib.loads(tables), here, "model.search.toml", fixed)


def over_the_wire(values: Mapping[str, Any], of: SearchSpace) -> dict[str, Any]:
    """What a worker gets from its chief."""
    hp = of.hyperparameters()
    hp.values = dict(values)
    return keras_tuner.HyperParameters.from_proto(hp.to_proto()).values


def test_every_type_becomes_a_hyperparameter_that_begins_with_the_shipped_value():
    found = space(
        """
        rate = {type = "float", range = [0.01, 1.0], log = true}
        epochs = {type = "int", range = [3, 15], step = 3}
        size = {type = "int", range = [8, 128], log = true, step = 2}
        smooth = {type = "bool"}
        loss = {type = "choice", choices = ["softmax", "bpr"]}
        layers = {type = "choice", choices = [[], [64], [128, 64]]}
        """
    )
    hp = found.hyperparameters()
    rate, epochs, size, smooth, loss, layers = hp.space
    assert (rate.min_value, rate.max_value, rate.sampling, rate.step, rate.default) == (0.01, 1.0, "log", None, 0.1)
    assert list(epochs.values) == [3, 6, 9, 12, 15]
    assert list(size.values) == [8, 16, 32, 64, 128]
    assert (smooth.default, list(loss.values), layers.default) == (False, ["softmax", "bpr"], "[64]")
    assert found.decode(hp.values) == {
        "rate": 0.1,
        "epochs": 9,
        "size": 64,
        "smooth": False,
        "loss": "softmax",
        "layers": [64],
    }


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('rat = {type = "float", range = [0.0, 1.0]}', "`rat` is not a setting of the model. Did you mean `rate`?"),
        ("rate = 0.1", "`rate` of model.search.toml must be a table with a type. Received: 0.1."),
        ('rate = {type = "float", rang = [0.0, 1.0]}', "Did you mean `range`?"),
        ('rate = {type = "real", range = [0.0, 1.0]}', "Received: 'real'."),
        ('rate = {type = "float", range = [1.0, 1.0]}', "to a larger one. Received: [1.0, 1.0], an empty one."),
        ('rate = {type = "float", range = [2.0, 1.0]}', "to a larger one. Received: [2.0, 1.0], an empty one."),
        ('rate = {type = "float", range = [0.1]}', "`range.1`"),
        ('rate = {type = "float", range = [0.1, inf]}', "finite number"),
        ('rate = {type = "float"}', "`type` float needs a `range`. Received: range=None."),
        ('loss = {type = "choice", choices = ["bpr"], range = [0, 1]}', "`type` choice takes no `range`."),
        ('loss = {type = "choice"}', "`type` choice needs `choices`. Received: choices=[]."),
        ('rate = {type = "float", range = [0, 1], choices = [0.5]}', "`type` float takes no `choices`."),
        ('loss = {type = "choice", choices = ["bpr", "bpr"]}', "`choices` must differ."),
        ('rate = {type = "float", range = [0.0, 1.0], log = true}', "must lie above 0 where `log` is true"),
        ('rate = {type = "float", range = [0.1, 1.0], log = true, step = 1.0}', "so it must be above 1. Received: 1."),
        ('rate = {type = "float", range = [0.1, 1.0], step = 0.0}', "greater than 0"),
        ('epochs = {type = "int", range = [3, 9], step = 1.5}', "`step` of an int must be whole. Received: 1.5."),
        ('epochs = {type = "int", range = [3, 9.5]}', "`range` of an int must have whole ends. Received: [3.0, 9.5]."),
        ('smooth = {type = "bool", step = 1}', "`step` and `log` belong to a number. Received: type bool."),
        ('smooth = {type = "bool", log = true}', "`step` and `log` belong to a number."),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(table: str, message: str):
    with pytest.raises(ShortlistError) as error:
        space(table)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "table",
    [
        'epochs = {type = "float", range = [0, 3]}',  # ends and thirds are whole: only a value in between tells
        'epochs = {type = "float", range = [0, 2718]}',
        'rate = {type = "bool"}',
        'smooth = {type = "int", range = [0, 1]}',
        'smooth = {type = "choice", choices = [0, 1]}',
        'loss = {type = "int", range = [1, 2]}',
        'layers = {type = "choice", choices = ["64"]}',
        'rate = {type = "choice", choices = [0.1, "none"]}',
        'size = {type = "choice", choices = [64, 64.5]}',
    ],
)
def test_a_type_that_does_not_fit_the_setting_is_refused(table: str):
    with pytest.raises(ShortlistError) as error:
        space(table)
    name = table.partition(" ")[0]
    assert f"`{name}" in str(error.value)
    assert "Received" in str(error.value)


def test_true_for_a_number_is_refused_and_not_taken_for_one():
    with pytest.raises(ShortlistError, match=r"whose shipped value is 0\.1\. Received: type bool, which turns F"):
        space('rate = {type = "bool"}')


@pytest.mark.parametrize(
    ("table", "begins"),
    [
        ('rate = {type = "float", range = [0.2, 1.0]}', 0.2),
        ('epochs = {type = "int", range = [2, 7]}', 7),
        ('loss = {type = "choice", choices = ["bpr", "hinge"]}', "bpr"),
        ('layers = {type = "choice", choices = [[32], [128, 64]]}', [32]),
    ],
)
def test_a_shipped_value_that_may_not_be_tried_gives_way_to_the_nearest(table: str, begins: Any):
    found = space(table)
    values = found.decode(found.hyperparameters().values)
    assert list(values.values()) == [begins]
    assert type(next(iter(values.values()))) is type(begins)


def test_mixed_choices_and_none_come_back_as_what_they_are():
    found = space('days = {type = "choice", choices = ["none", 90, 365]}')
    (hp,) = found.hyperparameters().space
    assert hp.default == "90"
    assert [found.decode({"days": value})["days"] for value in hp.values] == [None, 90, 365]


def test_none_among_text_is_nothing_and_not_the_word():
    def here(name: str, changes: Mapping[str, Any]) -> Any:
        return changes.get(name)

    found = parse_space({"tag": {"type": "choice", "choices": ["none", "a"]}}, here, "file")
    assert found.decode(found.hyperparameters().values) == {"tag": None}
    assert found.decode(over_the_wire({"tag": '"a"'}, found)) == {"tag": "a"}


def test_a_whole_number_written_with_a_point_is_the_same_choice():
    found = space('cap = {type = "choice", choices = ["none", 1, 2]}', cap=1.0)
    hp = found.hyperparameters()
    assert found.decode(hp.values) == {"cap": 1}


CONDITIONED = """
decay = {type = "float", range = [0.0, 0.5], condition = {smooth = [true], layers = [[64], [128, 64]]}}
smooth = {type = "bool"}
layers = {type = "choice", choices = [[], [64], [128, 64]]}
"""


def test_settings_stand_after_those_that_they_depend_on():
    found = space(CONDITIONED)
    assert list(found.settings) == ["smooth", "layers", "decay"]
    hp = found.hyperparameters()
    decay = hp.space[-1]
    active = {}
    for smooth in (False, True):
        for layers in ("[]", "[64]", "[128, 64]"):
            hp.values = {"smooth": smooth, "layers": layers}
            active[smooth, layers] = hp.is_active(decay)
    assert active == {
        (False, "[]"): False,
        (False, "[64]"): False,
        (False, "[128, 64]"): False,
        (True, "[]"): False,
        (True, "[64]"): True,
        (True, "[128, 64]"): True,
    }


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("{sooth = [true]}", "must name another setting of it. Received: 'sooth'."),
        ("{epochs = [3]}", "must name another setting of it. Received: 'epochs'."),
        ("{decay = [0.1]}", "must name another setting of it. Received: 'decay'."),
        ("{smooth = [1]}", "must list values that `smooth` can have. Received: [1]."),
        ("{smooth = []}", "must list values that `smooth` can have. Received: []."),
        ("{layers = [[64], [32]]}", "must list values that `layers` can have. Received: [[64], [32]]."),
        ("{size = [4]}", "must list values that `size` can have. Received: [4]."),
        ("{size = [8.5]}", "must list values that `size` can have. Received: [8.5]."),
        ("{size = [true]}", "must list values that `size` can have. Received: [True]."),
        ('{size = ["8"]}', "must list values that `size` can have. Received: ['8']."),
    ],
)
def test_a_condition_that_is_never_met_is_refused(condition: str, message: str):
    with pytest.raises(ShortlistError) as error:
        space(
            f"""
            decay = {{type = "float", range = [0.0, 0.5], condition = {condition}}}
            smooth = {{type = "bool"}}
            layers = {{type = "choice", choices = [[], [64]]}}
            size = {{type = "int", range = [8, 128]}}
            """
        )
    assert str(error.value).startswith("`condition` of `decay` of model.search.toml ")
    assert message in str(error.value)


def test_conditions_that_go_round_in_a_circle_are_refused():
    with pytest.raises(ShortlistError, match=r"must not go round in a circle\. Received: smooth, epochs\."):
        space(
            """
            smooth = {type = "bool", condition = {epochs = [5]}}
            epochs = {type = "int", range = [1, 9], condition = {smooth = [true]}}
            size = {type = "int", range = [8, 128]}
            """
        )


CHAIN = """
loss = {type = "choice", choices = ["softmax", "bpr"]}
smooth = {type = "bool", condition = {loss = ["bpr"]}}
decay = {type = "float", range = [0.0, 0.5], condition = {smooth = [true]}}
epochs = {type = "int", range = [3, 15]}
"""


@pytest.mark.parametrize(
    ("given", "left", "conditions"),
    [
        ({"loss": "softmax"}, ["epochs"], {}),  # what depends on what is left out goes too
        ({"loss": "bpr"}, ["smooth", "epochs", "decay"], {"decay": {"smooth": [True]}}),
        ({"smooth": True}, ["loss", "decay", "epochs"], {}),
        ({"smooth": False}, ["loss", "epochs"], {}),
        ({"loss": "bpr", "smooth": True}, ["decay", "epochs"], {}),
        ({"loss": "softmax", "smooth": True}, ["decay", "epochs"], {}),
        ({"epochs": 99}, ["loss", "smooth", "decay"], {"smooth": {"loss": ["bpr"]}, "decay": {"smooth": [True]}}),
    ],
)
def test_what_is_given_is_not_searched_nor_what_it_makes_pointless(given: dict, left: list, conditions: dict):
    found = space(CHAIN, fixed=tuple(given), **given)
    assert sorted(found.settings) == sorted(left)
    assert {name: s.condition for name, s in found.settings.items() if s.condition} == conditions
    assert {hp.name for hp in found.hyperparameters().space} == set(left)


def test_nothing_left_to_search_is_refused():
    with pytest.raises(ShortlistError, match=r"must leave a setting to search\. Received: all of epochs\."):
        space('epochs = {type = "int", range = [3, 15]}', fixed=("epochs",))


def test_a_step_that_the_shipped_value_is_on_is_not_tried_beside_it():
    found = space('rate = {type = "float", range = [0.0, 1.0], step = 0.1}', rate=0.3)
    (hp,) = found.hyperparameters().space
    steps = list(hp.values)
    assert hp.default in steps  # 3 * 0.1 is 0.30000000000000004
    assert [found.decode({"rate": v})["rate"] for v in steps] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    found = space('rate = {type = "float", range = [0.001, 1.0], log = true, step = 10}')
    (hp,) = found.hyperparameters().space
    assert hp.default in list(hp.values)
    assert found.decode({"rate": hp.default}) == {"rate": 0.1}


def test_kerastuners_own_values_are_left_out():
    found = space('epochs = {type = "int", range = [3, 15]}')
    values = {"epochs": 4, "tuner/epochs": 9, "tuner/initial_epoch": 3, "tuner/trial_id": "0001"}
    assert found.decode(values) == {"epochs": 4}


def test_a_setting_whose_condition_is_not_met_does_not_come_back():
    """KerasTuner's wire gives a setting its default while its parent still has the default, whatever that has."""
    found = space(
        """
        smooth = {type = "bool", condition = {size = [64]}}
        size = {type = "int", range = [8, 128]}
        """
    )
    received = over_the_wire({"size": 9}, found)
    assert "smooth" in received
    assert found.decode(received) == {"size": 9}
    assert found.decode(over_the_wire({"size": 64, "smooth": True}, found)) == {"size": 64, "smooth": True}


def test_rounding_does_not_leave_the_range():
    found = space('rate = {type = "float", range = [0.1234564, 0.8765436]}', rate=0.5)
    assert found.decode({"rate": 0.1234564}) == {"rate": 0.1234564}
    assert found.decode({"rate": 0.8765436}) == {"rate": 0.8765436}
    assert found.decode({"rate": 0.3333333333}) == {"rate": 0.333333}


WIDE = space(
    """
    rate = {type = "float", range = [0.0001, 10.0], log = true}
    decay = {type = "float", range = [-3.0, 0.5], condition = {layers = [[64], []]}}
    layers = {type = "choice", choices = [[], [64], [128, 64]]}
    epochs = {type = "int", range = [1, 100000], log = true}
    smooth = {type = "bool"}
    cap = {type = "choice", choices = ["none", 0.1, 3]}
    """
)


@given(st.data())
def test_chief_and_worker_see_the_same_settings(data: st.DataObject):
    """Draws of every setting, through KerasTuner's wire and back: the same for both, and all that holds is kept."""
    hp = WIDE.hyperparameters()
    hp.values = {}
    for one in hp.space:
        if hp.is_active(one):
            hp.values[one.name] = one.prob_to_value(data.draw(st.floats(0, 1, exclude_max=True)))
    here = WIDE.decode(hp.values)
    there = WIDE.decode(over_the_wire(hp.values, WIDE))
    assert here == there
    assert ("decay" in here) == (here["layers"] != [128, 64])
    for name, value in here.items():
        if WIDE.settings[name].type == "float":
            assert math.isclose(value, hp.values[name], rel_tol=1e-5)
        assert WIDE.settings[name].holds(value)
        value_of(name, {name: value})


@given(st.floats(0.0001, 10.0))
def test_the_first_trial_has_the_shipped_value_to_the_last_digit(rate: float):
    found = space('rate = {type = "float", range = [0.0001, 10.0], log = true}', rate=rate)
    values = found.hyperparameters().values
    assert found.decode(values) == found.decode(over_the_wire(values, found)) == {"rate": rate}


def test_shipped_search_files_fit_their_models():
    from shortlist.trainers._sweep import Sweep, SweepConfig, shipped_space

    files = sorted((Path(__file__).parents[2] / "trainers" / "configs").glob("*.search.toml"))
    assert len(files) >= 4
    for file in files:
        target = file.name.removesuffix(".search.toml")
        sweep = Sweep(SweepConfig(target=target), Path("unused"))
        assert {n for s in sweep.spaces.values() for n in s.settings} == set(shipped_space(target))
