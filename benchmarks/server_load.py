"""What the local server bears: its capacity, new versions under load, memory, and how soon the page answers.

Two bundles over random items, of one catalogue and different vectors, take turns as versions of one model. Before, each
answers every request that the clients will send: those answers are what is right. Then

- the capacity: requests a second of `clients` that wait for each answer, without new versions;
- for `seconds`, requests at `share` of it, at random times (a Poisson process) on connections of their own, while every
  `period` seconds the other bundle is pushed as a new version: no request may fail, and each answer must be that of one
  of the two bundles;
- memory: what the server gained from request `first` to request `requests`;
- page: in a browser, from the click that picks the third item until its recommendations stand on the page;
- stop: SIGTERM in the middle of requests at `share` of the capacity; what was accepted is answered to its client.

`--parts` names some of them; the capacity is always measured. The clients are a process of their own. Latencies are
from when a request was due.
"""

import argparse
import concurrent.futures
import http.client
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from _table import add_numbers, ended, parsed, plain_parser

QUICK = {"items": 2_000, "candidates": 50, "seconds": 10, "requests": 3_000, "first": 1_000}
MEMORY_BAR, PAGE_BAR = 30.0, 300.0
SHARE, PERIOD, ASKED, PICKS = 0.8, 5.0, 64, 7
PARTS = ("load", "memory", "page", "stop")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def make(folder: Path, seed: int, a: argparse.Namespace) -> Path:
    """A bundle over random items, as the Exporter leaves it, with one of the clients' requests to warm it up."""
    import tensorflow as tf
    from serving_latency import FIRST, Task

    from shortlist.components._catalogue import write_catalogue
    from shortlist.components._prediction_log import WARMUP, log_record, write_logs
    from shortlist.components._replay import tensors

    files = folder / f"files {seed}"
    files.mkdir(parents=True)
    options = argparse.Namespace(dim=32, candidates=a.candidates)
    task = Task(a.items, options, files, seed=seed)
    saved = folder / f"bundle {seed}"
    tf.saved_model.save(task.servable, str(saved), signatures=task.servable.interface)
    ids = task.ids[FIRST:].tolist()
    about = {
        "sources": list(task.servable.shortlist.sources),
        "contexts": {},
        "features": sorted(task.servable.example_features),
        "size": 2 * a.candidates,
    }
    write_catalogue(saved, ids, [title(n) for n in range(a.items)], [2000] * a.items, [["Drama"]] * a.items, about)
    recommend = tf.saved_model.load(str(saved)).signatures["recommend"]
    asked = tensors(recommend, json.loads(requests_of(a)[0])["inputs"])
    inputs = {name: value.numpy() for name, value in asked.items()}
    write_logs(saved / WARMUP, [log_record("shortlist", "recommend", inputs, {})])
    return saved


def title(number: int) -> str:
    return f"Title {number:07d}"


def requests_of(a: argparse.Namespace) -> list[bytes]:
    rng = np.random.default_rng(5)
    bodies = []
    for _ in range(ASKED):
        history = [f"item {n}" for n in rng.integers(0, a.items, int(rng.integers(1, 30)))]
        inputs = {"user": [""], "history": [history], "exclude": [[""]], "time": [-1], "k": [10]}
        bodies.append(json.dumps({"signature_name": "recommend", "inputs": inputs}).encode())
    return bodies


class Server:
    """`shortlist serve` on a folder of versions."""

    def __init__(self, home: Path):
        program = str(Path(sys.executable).with_name("shortlist"))
        command = [program, "serve", str(home), "--port", "0", "--timeout", "60"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout
        found = re.match(r"Open http://([\d.]+):(\d+)/", self.process.stdout.readline())
        if not found:
            raise SystemExit("The server did not start.")
        self.port = int(found[2])
        self.url = f"http://{found[1]}:{found[2]}"

    def resident(self) -> float:
        """MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found
        return int(found[1]) * 1024 / 1e6

    def version(self) -> str:
        status, body = ask(self.port, None, "GET", "/v1/models/shortlist")
        assert status == 200
        found = json.loads(body)["model_version_status"]
        return max((v["version"] for v in found if v["state"] == "AVAILABLE"), key=int)

    def stop(self) -> str:
        self.process.terminate()
        said, _ = self.process.communicate(timeout=120)
        return said


def ask(port: int, body: bytes | None, method: str = "POST", path: str = "/v1/models/shortlist:predict") -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def items_of(body: bytes) -> str:
    return json.dumps(json.loads(body)["outputs"]["items"])


def drive(port: int, bodies: list[bytes], rate: float, seconds: float, right: list[set[str]], clients: int) -> Any:
    """Requests at random times, `rate` a second; how many, the failures, the wrong answers and the latencies in ms."""
    chance = random.Random(3)
    lateness, failed, wrong, lock = [], [], [], threading.Lock()

    def one(due: float, number: int) -> None:
        try:
            status, body = ask(port, bodies[number])
            problem = None if status == 200 else f"{status}: {body[:200]!r}"
        except OSError as error:
            status, body, problem = 0, b"", repr(error)
        with lock:
            lateness.append(1000 * (time.monotonic() - due))
            if problem:
                failed.append(problem)
            elif items_of(body) not in right[number]:
                wrong.append(number)

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        due = time.monotonic()
        end = due + seconds
        while due < end:
            due += chance.expovariate(rate)
            time.sleep(max(0.0, due - time.monotonic()))
            pool.submit(one, due, chance.randrange(len(bodies)))
    return len(lateness), failed, wrong, lateness


def saturate(port: int, bodies: list[bytes], seconds: float, clients: int, most: int | None = None) -> float:
    """Requests a second of clients that wait for their answers; `most` in all if given, for as long as it takes."""
    numbers, end = itertools.count(), time.monotonic() + seconds
    counts = [0] * clients

    def one(client: int) -> None:
        while True:
            number = next(numbers)
            if number >= most if most else time.monotonic() > end:
                return
            status, body = ask(port, bodies[number % len(bodies)])
            if status != 200:
                raise SystemExit(f"A request failed: {status} {body[:200]!r}")
            counts[client] += 1

    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(clients)))
    return sum(counts) / (time.monotonic() - started)


def page_times(url: str, browser: str) -> list[float]:
    """Milliseconds from the click on a title until its recommendations are on the page."""
    from playwright.sync_api import sync_playwright

    times = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for number in range(PICKS):
            page = chromium.new_page()
            page.goto(url)
            page.locator("html[data-answers]").wait_for(state="attached")
            for word in range(3):
                name = title(100 * number + word)
                page.fill("#search", name)
                page.locator("#found [role=option]", has_text=name).wait_for()
                before = int(page.evaluate("document.documentElement.dataset.answers"))
                times.append(page.evaluate(CLICK, [name, before]))
            times[-3:] = times[-1:]  # of the last pick
            page.close()
        chromium.close()
    return times


CLICK = """([title, before]) => new Promise((resolve) => {
    const root = document.documentElement;
    const started = performance.now();
    new MutationObserver(() => {
        if (Number(root.dataset.answers) > before) requestAnimationFrame(() => resolve(performance.now() - started));
    }).observe(root, { attributes: true });
    [...document.querySelectorAll("#found [role=option]")].find((o) => o.textContent.startsWith(title)).click();
})"""


def row(case: str, ours: float, bar: float | None, apart: str = "", peer: float | None = None) -> dict[str, Any]:
    ok = bar is None or ours <= bar
    return {"case": case, "ours": ours, "peer": peer, "ratio": None, "bar": bar, "ok": ok, "apart": apart}


def under_load(
    server: Server,
    home: Path,
    bundles: list[Path],
    bodies: list[bytes],
    right: list[set[str]],
    capacity: float,
    a: argparse.Namespace,
) -> list[dict[str, Any]]:
    from shortlist.components.pusher import publish

    before = server.resident()
    stop, pushed = threading.Event(), [0]

    def push() -> None:
        while not stop.wait(PERIOD):
            publish(bundles[pushed[0] % 2], home, 2)
            pushed[0] += 1

    pushing = threading.Thread(target=push)
    pushing.start()
    count, failed, wrong, late = drive(server.port, bodies, SHARE * capacity, a.seconds, right, 64)
    stop.set()
    pushing.join()
    under = f"{a.seconds} s at {SHARE:.0%}, a version every {PERIOD:g} s"
    told = f"of {count:,} requests, {pushed[0]} versions; {failed[:1]}"
    rows = [row(f"{under}: failed", len(failed), 0, told), row(f"{under}: wrong", len(wrong), 0, told)]
    for percent in (50, 99):
        rows.append(row(f"{under}: ms, p{percent}", round(float(np.percentile(late, percent)), 1), None))
    while server.version() != str(max(int(p.name) for p in home.iterdir() if p.name.isdecimal())):
        time.sleep(0.1)
    gained = server.resident() - before
    rows.append(row(f"{under}: MB gained", round(gained, 1), None, f"{before:.0f} MB before"))
    return rows


def memory(server: Server, bodies: list[bytes], a: argparse.Namespace) -> dict[str, Any]:
    saturate(server.port, bodies, 0, a.clients, a.first)
    before = server.resident()
    saturate(server.port, bodies, 0, a.clients, a.requests - a.first)
    gained = server.resident() - before
    case = f"MB gained from request {a.first:,} to {a.requests:,}"
    return row(case, round(gained, 1), MEMORY_BAR, f"{before:.0f} MB before")


def stopped_under_load(server: Server, bodies: list[bytes], rate: float, seconds: float) -> list[dict[str, Any]]:
    """SIGTERM after half of the time: what the server says it accepted, against the answers that the clients got."""
    right = [{items_of(ask(server.port, body)[1])} for body in bodies]
    said: list[str] = []
    stopping = threading.Timer(seconds / 2, lambda: said.append(server.stop()))
    stopping.start()
    count, failed, wrong, _ = drive(server.port, bodies, rate, seconds, right, 64)
    stopping.join()
    accepted, answered = told(said[0])
    came = len(bodies) + count - len(failed)
    turned_away = sum("Refused" in problem or "reset" in problem for problem in failed)
    apart = f"{accepted:,} accepted, {answered:,} answered, {turned_away:,} turned away after it"
    return [
        row("SIGTERM under load: accepted, and not answered to its client", accepted - came, 0, apart),
        row(
            "SIGTERM under load: failed otherwise, or wrong", len(failed) - turned_away + len(wrong), 0, str(failed[:1])
        ),
    ]


def told(said: str) -> tuple[int, int]:
    """How many requests a server accepted and answered, of its last line."""
    accepted, answered = re.findall(r"\d[\d,]*", said.splitlines()[-1])
    return int(accepted.replace(",", "")), int(answered.replace(",", ""))


def measure(a: argparse.Namespace, folder: Path, browser: str) -> list[dict[str, Any]]:
    from shortlist.components.pusher import publish

    bundles = [make(folder, seed, a) for seed in (0, 1)]
    bodies = requests_of(a)
    home = folder / "pushed" / "shortlist"
    publish(bundles[0], home, 2)
    server = Server(home)
    rows: list[dict[str, Any]] = []
    try:
        right: list[set[str]] = [{items_of(ask(server.port, body)[1])} for body in bodies]
        version = publish(bundles[1], home, 2)
        while server.version() != str(version):
            time.sleep(0.1)
        differ = 0
        for body, known in zip(bodies, right, strict=True):
            known.add(items_of(ask(server.port, body)[1]))
            differ += len(known) == 2
        if differ < len(bodies):
            raise SystemExit("The two bundles answer alike: nothing would be found out.")
        capacity = saturate(server.port, bodies, min(10, a.seconds), a.clients)
        rows.append(row(f"N = {a.items:,}: requests a second, {a.clients} clients", round(capacity, 1), None))
        print(rows[-1]["case"], rows[-1]["ours"], file=sys.stderr)
        if "load" in a.parts:
            rows += under_load(server, home, bundles, bodies, right, capacity, a)
        if "memory" in a.parts:
            rows.append(memory(server, bodies, a))
        if "page" in a.parts:
            times = page_times(server.url, browser)
            worst = f"the longest of {len(times)}: {max(times):.0f}"
            rows.append(
                row("page: ms from the last pick to its answer", round(float(np.median(times)), 1), PAGE_BAR, worst)
            )
            rows[-1]["ok"] = max(times) <= PAGE_BAR
        if "stop" in a.parts:
            rows += stopped_under_load(Server(home), bodies, SHARE * capacity, min(10.0, a.seconds))
    finally:
        said = server.stop()
    accepted, answered = told(said)
    rows.append(row("accepted, and not answered", accepted - answered, 0, f"of {accepted:,}"))
    return rows


def parse(argv: list[str]) -> argparse.Namespace:
    parser = plain_parser(__doc__, QUICK)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help=f"({' '.join(PARTS)})")
    add_numbers(
        parser,
        ("items", 10_000, "N, items of the catalogue"),
        ("candidates", 200, "of each source"),
        ("seconds", 60, "under load with new versions"),
        ("clients", 8, "that measure the capacity"),
        ("requests", 100_000, "over which memory is looked at"),
        ("first", 10_000, "of them before memory is first looked at"),
    )
    a = parsed(parser, argv, QUICK)
    if min(a.items, a.candidates, a.seconds, a.clients, a.first) < 1 or a.requests <= a.first:
        parser.error("--requests must be more than --first, and all numbers at least 1.")
    return a


def main(argv: list[str]) -> int:
    a = parse(argv)
    browser = next(filter(None, map(shutil.which, BROWSERS)), "")
    if not browser and "page" in a.parts:
        raise SystemExit(f"A browser must be on the PATH: {', '.join(BROWSERS)}.")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(a, Path(folder), browser)
    return ended(rows, "bar: the most that ours may be.", ["apart"], a.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
