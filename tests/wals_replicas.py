"""Trains WALS under a strategy in a process of its own; prints what came of it as JSON.

`python wals_replicas.py mirrored FILE` runs 1, 2 and 4 replicas on logical devices, one after the other;
`… multi_worker FILE CHECKPOINTS [EPOCH]` is one of the processes of TF_CONFIG, which kills itself in that epoch.
"""

import json
import os
import signal
import sys
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np

from shortlist import ShortlistError  # before TensorFlow, for its Keras

import tensorflow as tf  # isort: skip
from shortlist.models._wals import read_sides
from shortlist.models._wals_progress import Progress
from shortlist.models._wals_sharded import ShardedRows
from shortlist.models.wals import WALS

OPTIONS = {"embedding_dim": 5, "unobserved_weight": 0.3, "l2": 0.1, "init_stddev": 1.0}


def matrix(file: str) -> tuple[tf.SparseTensor, tf.SparseTensor]:
    observed, target, weight = np.load(file)
    indices = np.argwhere(observed)
    x, c = (tf.SparseTensor(indices, m[tuple(indices.T)].astype(np.float32), m.shape) for m in (target, weight))
    return x, c


def found(model: WALS, history: Any) -> dict[str, Any]:
    return {**history.history, "epoch": history.epoch, "weights": [w.tolist() for w in model.get_weights()]}


class Kill(tf.keras.callbacks.Callback):
    def __init__(self, epoch: int):
        super().__init__()
        self.at, self.epoch = epoch, -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == (self.at, 1):  # the users'
            os.kill(os.getpid(), signal.SIGKILL)


def refusal(call: Any) -> str:
    try:
        call()
    except ShortlistError as error:
        return str(error)
    return "nothing"


def mirrored(file: str) -> dict[str, Any]:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    (x, c), result = matrix(file), {}
    for replicas in (1, 2, 4):
        strategy = tf.distribute.MirroredStrategy(devices[:replicas])
        for solver, backend in (("cholesky", "numba"), ("cg", "numba"), ("block", "tensorflow")):
            model = WALS(**OPTIONS, solver=solver, backend=backend, block_size=2)
            with strategy.scope():
                history = model.fit(x, sample_weight=c, validation_data=x, epochs=4, verbose=0)
            result[f"{solver} {replicas}"] = found(model, history)
        if replicas > 1:
            with strategy.scope():
                shared = ShardedRows(model, strategy, *read_sides(x, c, 5), Progress(model, None))
                before = shared.received
                shared.half_step("items", tf.keras.callbacks.CallbackList(), 0)
            held = [shared.held("items", place) for place in range(replicas)]
            result[f"bytes {replicas}"] = {"held": held, "received": shared.received - before}
    with strategy.scope():
        built = WALS(**OPTIONS)
        built.build(x.shape)  # mirrored variables
        result["built inside"] = found(built, built.fit(x, sample_weight=c, epochs=4, verbose=0, validation_data=x))
        alike = WALS(2, 0.0, 0.0, init_stddev=0.0)  # every system is 0
        result["no solution"] = refusal(lambda: alike.fit(x, verbose=0))
        data = tf.data.Dataset.from_tensors({"rows": [0], "columns": [[0]]})
        result["data sets"] = refusal(lambda: built.fit((data, data), verbose=0))
    return result


def multi_worker(file: str, checkpoints: str, kill: str = "-1") -> dict[str, Any]:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    x, c = matrix(file)
    model = WALS(**OPTIONS)
    with strategy.scope():
        history = model.fit(
            x,
            sample_weight=c,
            validation_data=x,
            epochs=4,
            verbose=0,
            callbacks=[Kill(int(kill))],
            checkpoint_dir=checkpoints,
        )
    return {**found(model, history), "replicas": strategy.num_replicas_in_sync}


if __name__ == "__main__":
    print(json.dumps({"mirrored": mirrored, "multi_worker": multi_worker}[sys.argv[1]](*sys.argv[2:])), flush=True)
    os._exit(0)  # the end of one process must not look like a loss to the other
