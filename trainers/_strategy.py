"""`fit` under a `tf.distribute` strategy: which one, the replicas' model, and what each of them reads.

A model is made, described and saved as on one machine. For training it gets a twin within the strategy's scope, which
starts with its weights and its optimizer's state, and gives both back.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._training import Together, together
from shortlist.trainers._common import ALONE, Share, TrainerConfig, Validate

SLOTS = ("_accumulators", "_momentums", "_velocities")
"""Where Adagrad and Adam keep what they remember of each weight."""
Batches = Callable[[int, Share], tuple[tf.data.Dataset, int]]
"""From the epoch to begin with and the share of each batch to the data set and the number of its batches an epoch."""


def fit(model: Any, config: Any, batches: Batches, first: int, callbacks: Sequence[Any]) -> dict[str, list[float]]:
    """Trains a compiled model by its `fit`, under the strategy of its settings.

    Args:
      model: built and compiled; it holds what was learned afterwards.
      config: settings with `strategy` and `epochs`; `batch_size` is that of all replicas together.
      batches: see there. Under parameter servers a batch goes to one worker.
      first: the epoch to begin with; a training that was interrupted goes on behind its last one.
      callbacks: as `shortlist.trainers._common.callbacks` makes them.

    Returns:
      The history by the name of the metric, an entry an epoch.
    """
    if config.strategy == "none":
        data, steps = batches(first, ALONE)
        return _fit(model, config, data, steps, first, callbacks)
    shared, strategy = together(), strategy_of(config)
    backup: list[Any] = []
    if shared:
        first = _saved_epoch(shared.backup, first)
        backup = [tf.keras.callbacks.BackupAndRestore(str(shared.backup), delete_checkpoint=False)]
    with strategy.scope():
        twin = type(model).from_config(model.get_config())
        _give(model, twin)
        twin.compile(type(model.optimizer).from_config(model.optimizer.get_config()))
        twin.optimizer.build(twin.trainable_variables)
    model.optimizer.build(model.trainable_variables)
    _give_optimizer(model, twin)
    if any(isinstance(callback, Validate) for callback in callbacks):
        learned = tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: _take(twin, model))
        callbacks = [learned, *callbacks]
    data, steps = _input(batches, first, shared)
    history = _fit(twin, config, data, steps, first, [*backup, *callbacks])
    _take(twin, model)
    _take_optimizer(twin, model)
    return history


def _fit(
    model: Any, config: Any, data: Any, steps: int, first: int, callbacks: Sequence[Any]
) -> dict[str, list[float]]:
    epochs = {"epochs": config.epochs, "initial_epoch": first, "steps_per_epoch": steps}
    return model.fit(data, **epochs, verbose=0, callbacks=list(callbacks)).history


def strategy_of(config: TrainerConfig) -> Any:
    """The strategy in whose scope a model of these settings is trained.

    Raises:
      ShortlistError: for one that several processes share, outside of them.
    """
    shared = together()
    if config.strategy == "none":
        return tf.distribute.get_strategy()
    if shared and shared.cluster.strategy == config.strategy:
        return shared.strategy
    if config.strategy == "parameter_server":
        raise ShortlistError(
            "`strategy` parameter_server needs processes of its own: `shortlist train` and `shortlist run` start them. "
            "Received: a trainer that was called in this process."
        )
    return _mirrored()


@cache
def _mirrored() -> Any:
    """Over all GPUs, or the logical devices of the CPU; once a process, or its collective operations would mix."""
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _input(batches: Batches, first: int, shared: Together | None) -> tuple[Any, int]:
    """What the twin's `fit` reads, and its steps an epoch."""
    steps = batches(first, ALONE)[1]
    if shared and shared.cluster.strategy == "parameter_server":
        return _served(batches(first, ALONE)[0], shared), steps

    def of_this_process(context: tf.distribute.InputContext) -> tf.data.Dataset:
        local = context.num_replicas_in_sync // context.num_input_pipelines
        share = Share(local * context.input_pipeline_id, local, context.num_replicas_in_sync)
        return batches(first, share)[0].repeat()  # without an end, nobody has to ask whether another has reached it

    return tf.keras.utils.experimental.DatasetCreator(of_this_process), steps


_SERVERS: list[Any] = []
"""What serves input until the process ends: to stop it is to wait for workers that may still be asking."""


def _served(data: tf.data.Dataset, shared: Together) -> Any:
    """The batches of the chief, each for the worker that asks first: the chief does not train, so it makes them."""
    service = tf.data.experimental.service
    host = shared.cluster.jobs["chief"][0].rpartition(":")[0]
    dispatcher = service.DispatchServer()
    address = f"{host}:{dispatcher.target.rpartition(':')[2]}"
    port = _free_port()
    worker = service.WorkerServer(
        service.WorkerConfig(dispatcher_address=address, worker_address=f"{host}:{port}", port=port)
    )
    data = data.repeat()  # what one worker has fetched and not used must not be missing to another
    spec, name = data.element_spec, service.register_dataset(f"grpc://{address}", data)

    def read(_: tf.distribute.InputContext) -> tf.data.Dataset:
        batches = service.from_dataset_id("parallel_epochs", f"grpc://{address}", name, spec, job_name="training")
        return batches.prefetch(2)

    _SERVERS.extend([dispatcher, worker])
    return tf.keras.utils.experimental.DatasetCreator(read)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _saved_epoch(backup: Path, first: int) -> int:
    """The epoch that a training that was interrupted goes on with, by what `BackupAndRestore` has kept."""
    saved = tf.train.latest_checkpoint(str(backup / "chief"))
    if saved is None:
        return first
    return int(tf.train.load_variable(saved, "ckpt_saved_epoch/.ATTRIBUTES/VARIABLE_VALUE")) + 1


def _parts(variables: Sequence[Any], further: Sequence[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Each variable with the one of a twin that it corresponds to, or the several that servers share its rows by."""
    left = iter(further)
    for variable in variables:
        parts = [next(left)]
        while variable.shape.rank and sum(part.shape[0] for part in parts) < variable.shape[0]:
            parts.append(next(left))
        yield variable, parts


def _copy_in(variables: Sequence[Any], further: Sequence[Any]) -> None:
    for variable, parts in _parts(variables, further):
        if len(parts) == 1:
            parts[0].assign(variable)
            continue
        start = 0
        for part in parts:
            part.assign(variable[start : start + part.shape[0]])
            start += part.shape[0]


def _copy_out(variables: Sequence[Any], further: Sequence[Any]) -> None:
    for variable, parts in _parts(variables, further):
        values = [part.numpy() for part in parts]
        variable.assign(values[0] if len(values) == 1 else np.concatenate(values))


def _learned(model: Any) -> list[Any]:
    """The weights without those of the metrics: to read these is to sum over processes that may not be reading."""
    counted = {id(variable) for metric in model.metrics for variable in metric.variables}
    return [weight for weight in model.weights if id(weight) not in counted]


def _give(model: Any, twin: Any) -> None:
    _copy_in(_learned(model), _learned(twin))


def _take(twin: Any, model: Any) -> None:
    _copy_out(_learned(model), _learned(twin))


def _give_optimizer(model: Any, twin: Any) -> None:
    twin.optimizer.iterations.assign(model.optimizer.iterations)
    for slot in SLOTS:
        _copy_in(getattr(model.optimizer, slot, ()), getattr(twin.optimizer, slot, ()))


def _take_optimizer(twin: Any, model: Any) -> None:
    model.optimizer.iterations.assign(twin.optimizer.iterations.numpy())
    for slot in SLOTS:
        _copy_out(getattr(model.optimizer, slot, ()), getattr(twin.optimizer, slot, ()))
