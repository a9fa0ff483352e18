"""How long `shortlist refresh` takes, as a command, from its start to the pushed version; and what that one answers.

A log is drawn over a catalogue of topics: a topic has genres of its own and words in its titles, and users watch mostly
items of a few. The whole pipeline runs on it once (with WALS, a two-tower that reads titles, and the cosine of content
as its sources; `--workdir` keeps it). Then some items leave the catalogue, others come, and some users did more.

Checked of the new version: that no removed item is among the whole order of the catalogue; that who watched items of a
topic is proposed its new items, against as many drawn at random (peer); and that other users keep the order of the
items that stay, of each source alone.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _table import add_numbers, ended, parsed, plain_parser

QUICK = {"items": 2_000, "users": 300, "new": 100, "removed": 50, "rounds": 1}
BAR = 30.0  # seconds
GENRES, EVENTS, START, DAY = 18, 40, 1_600_000_000, 86_400
SOURCES = """
[evaluation]
samples = 200
[sources.wals]
epochs = 2
[sources.two_tower]
epochs = 2
examples_per_user = 8
title = true
[sources.content]
model = "content_based"
form = "profile"
[ranker]
epochs = 2
"""
NAMES = ("wals", "two_tower", "content")
ASKED = 50


def topics(a: argparse.Namespace) -> int:
    return max(a.items // 100, 4)


def items_table(numbers: np.ndarray, a: argparse.Namespace) -> pa.Table:
    """Item n is of topic n mod the number of topics."""
    topic = numbers % topics(a)
    genres = [[f"genre {t % GENRES}", f"genre {(t // GENRES + t) % GENRES}"] for t in topic]
    titles = [f"The {_word(t)} of {_word(t + 10_000)} {n}" for n, t in zip(numbers, topic, strict=True)]
    ids = [f"item {n}" for n in numbers]
    years = pa.array(1960 + topic % 60, pa.int16())
    return pa.table({"item": ids, "title": titles, "year": years, "genres": pa.array(genres)})


def _word(number: int) -> str:
    """A word of its own for each number."""
    letters = ""
    while number:
        number, rest = divmod(int(number), 20)
        letters += "bcdfghjklmnpqrstvwxz"[rest] + "aeiou"[rest % 5]
    return letters or "a"


def log_table(a: argparse.Namespace) -> pa.Table:
    """Every user begins with some items that nobody else begins with, so that each item is known; then they watch items
    of three topics mostly, and the low numbers more often."""
    rng = np.random.default_rng(0)
    users, picked = [], []
    per_topic = a.items // topics(a)
    rank = 1 / (1 + np.arange(per_topic))
    for user in range(a.users):
        liked = rng.choice(topics(a), 3)
        topic = np.where(
            rng.random(3 * EVENTS) < 0.8, rng.choice(liked, 3 * EVENTS), rng.integers(0, topics(a), 3 * EVENTS)
        )
        place = rng.choice(per_topic, 3 * EVENTS, p=rank / rank.sum())
        own = [*range(user, a.items, a.users), *(place * topics(a) + topic).tolist()]
        own = list(dict.fromkeys(own))[:EVENTS]
        picked += own
        users += [user] * len(own)
    number = np.concatenate([np.arange(count) for count in np.bincount(users)])
    times = START + np.array(users) * 100 + number * DAY
    ids = ([f"user {n}" for n in users], [f"item {n}" for n in picked])
    return pa.table({"user": ids[0], "item": ids[1], "timestamp": times})


def command(*words: object) -> None:
    program = [sys.executable, "-c", "import sys; from shortlist.cli import main; main()", *map(str, words)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"`shortlist {words[0]}` failed:\n{done.stdout}\n{done.stderr}")
    print(done.stdout.strip().splitlines()[-1], file=sys.stderr)


def trained(a: argparse.Namespace) -> Path:
    """The run, made once."""
    home = a.workdir / f"{a.items}-{a.users}"
    run = home / "run"
    if not (run / "run.json").exists():
        home.mkdir(parents=True, exist_ok=True)
        pq.write_table(log_table(a), home / "log.parquet")
        pq.write_table(items_table(np.arange(a.items), a), home / "items.parquet")
        (home / "sources.toml").write_text(SOURCES)
        settings = (f"data.items={home / 'items.parquet'}", "push.force=true", "baselines={}")
        words = [word for setting in settings for word in ("--set", setting)]
        data = ("--data", f"parquet:{home / 'log.parquet'}", "--workdir", run, "--config", home / "sources.toml")
        command("run", *data, *words)
    return run


def today(a: argparse.Namespace, run: Path) -> dict[str, np.ndarray]:
    """Writes what has changed; the numbers of the items that are `removed` and `new`, and of users who did `more`."""
    encoded = next((run / "artifacts" / "Transform").iterdir())
    known = np.array([int(line.split()[1]) for line in (encoded / "items.txt").read_text().splitlines()])
    rng = np.random.default_rng(1)
    removed = rng.choice(known, a.removed, replace=False)
    new = a.items + np.arange(a.new)
    listed = np.concatenate([np.setdiff1d(known, removed), new])
    pq.write_table(items_table(listed, a), run.parent / "today.parquet")
    more = rng.choice(a.users, min(100, a.users // 4), replace=False)
    rows = {"user": [f"user {n}" for n in more], "item": [f"item {n}" for n in rng.choice(new, len(more))]}
    log = pa.table({**rows, "timestamp": START + 400 * DAY + np.arange(len(more))})
    pq.write_table(log, run.parent / "since.parquet")
    return {"removed": removed, "new": new, "more": more}


def refresh_once(run: Path) -> float:
    """Seconds of the command on a run that was not refreshed before."""
    for old in (*run.glob("artifacts/*.refresh*"), *run.glob("artifacts/RefreshGen")):
        shutil.rmtree(old)
    (run / "refreshed.json").unlink(missing_ok=True)
    started = time.perf_counter()
    files = ("--items", run.parent / "today.parquet", "--interactions", run.parent / "since.parquet")
    command("refresh", run, *files)
    return time.perf_counter() - started


def asked(bundle: Any, signature: str, **given: list[Any]) -> np.ndarray:
    import tensorflow as tf

    function = bundle.signatures[signature]
    batch = len(next(iter(given.values())))
    inputs = {}
    for name, spec in function.structured_input_signature[1].items():
        nothing = tf.constant("" if spec.dtype == tf.string else -1, spec.dtype)
        absent = tf.fill([batch] + [1] * (spec.shape.rank - 1), nothing)
        inputs[name] = tf.constant(given[name], spec.dtype) if name in given else absent
    return function(**inputs)["items"].numpy().astype(str)


def checks(a: argparse.Namespace, run: Path, changed: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    import tensorflow as tf

    numbers = sorted(int(path.name) for path in (run / "pushed" / "shortlist").iterdir() if path.name.isdigit())
    old, new = (tf.saved_model.load(str(run / "pushed" / "shortlist" / str(n))) for n in (numbers[0], numbers[-1]))
    rng = np.random.default_rng(2)
    others = rng.choice(np.setdiff1d(np.arange(a.users), changed["more"]), ASKED, replace=False)
    users = [f"user {n}" for n in others]
    gone = {f"item {n}" for n in changed["removed"]}
    size = a.items + a.new
    returned = 0
    for user in users:
        for signature in ("recommend", "retrieve"):
            returned += len(gone & {*asked(new, signature, user=[user], k=[size]).ravel()})
    rows = [
        {"case": "removed items returned", "ours": returned, "peer": None, "ratio": None, "bar": 0, "ok": not returned}
    ]

    found, chance = [], []
    for topic in range(min(topics(a), ASKED)):
        history = [f"item {topic + n * topics(a)}" for n in range(1, 7)]
        own = {f"item {n}" for n in changed["new"] if n % topics(a) == topic}
        proposed = asked(new, "retrieve", user=[""], history=[history], k=[300])[0]
        found.append(len(own & {*proposed}) / len(own))
        chance.append(300 / size)
    ours, peer = float(np.mean(found)), float(np.mean(chance))
    case = "share of a topic's new items among 300 proposed"
    rows.append({"case": case, "ours": ours, "peer": peer, "ratio": ours / peer, "bar": 10.0, "ok": ours >= 10 * peer})

    query = {
        "user": tf.constant(rng.integers(2, a.users, ASKED), tf.int32),
        "history": tf.constant(rng.integers(2, a.items // 2, (ASKED, 10)), tf.int32),
        "history_time": tf.constant(np.full((ASKED, 10), START), tf.int64),
        "time": tf.constant(np.full(ASKED, START + 300 * DAY), tf.int64),
    }
    for name in NAMES:
        was, now = (b.shortlist.sources[name].scores(query).numpy() for b in (old, new))
        now = now[:, : was.shape[1]]
        off = float(np.max(np.abs(now - was)) / np.abs(was).max())
        row = {"case": f"largest change of {name}'s scores of the items that it knew", "ours": off, "peer": None}
        rows.append({**row, "ratio": None, "bar": 1e-5, "ok": off <= 1e-5})
    return rows


def parse(argv: list[str]) -> argparse.Namespace:
    parser = plain_parser(__doc__, QUICK)
    parser.add_argument("--workdir", type=Path, default=Path("runs/refresh"), help="(runs/refresh)")
    parser.add_argument("--prepare", action="store_true", help="train the run that is refreshed, and end")
    add_numbers(
        parser,
        ("items", 20_000, "of the run's catalogue"),
        ("users", 2_000, "of the log"),
        ("new", 1_000, "items that come"),
        ("removed", 500, "items that go"),
        ("rounds", 5, "of the same refresh; the median counts"),
    )
    a = parsed(parser, argv, QUICK)
    if min(a.items, a.users, a.new, a.removed, a.rounds) < 1 or a.users <= 2 * ASKED or a.items < 400:
        parser.error("--items must be at least 400, --users above 100, and all others at least 1.")
    return a


def main(argv: list[str]) -> int:
    a = parse(argv)
    run = trained(a)
    if a.prepare:
        return 0
    changed = today(a, run)
    seconds = [refresh_once(run) for _ in range(a.rounds)]
    median = float(np.median(seconds))
    case = f"seconds: {a.new:,} new and {a.removed:,} removed, {a.items:,} items"
    rows = [{"case": case, "ours": median, "peer": None, "ratio": None, "bar": BAR, "ok": median <= BAR}]
    rows += checks(a, run, changed)
    text = f"{os.cpu_count()} cores. Seconds: the median of {', '.join(f'{s:.1f}' for s in seconds)}."
    return ended(rows, text, file=a.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
