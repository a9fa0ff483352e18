"""Trainers: the only place that knows both models and components. One file a model, and `two_stage.py`.

Each trainer is a module with a frozen `Config` and `train(config, inputs, workdir)`; its defaults are the TOML file of
the same name in `configs/`.
"""

if __name__ != "shortlist.trainers":
    raise ImportError(
        "Import this package as `shortlist.trainers` (run `pip install -e .` first). Received: `trainers`."
    )
