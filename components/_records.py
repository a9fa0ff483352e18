"""Requests that are recorded with a bundle, chosen from its data, and the page that describes its signatures."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shortlist.components._serving_files import IMAGE

Request = dict[str, Any]
LARGE = 20_000  # a catalogue above this is not recorded whole

MEANING = {
    "examples": "serialized `tf.Example`s, see below",
    "user": "id of the user; an unknown one is served by its history",
    "history": "ids of what was watched, oldest first; unknown ids are left out; without a known one, the history that "
    "is stored of the user is used",
    "history_time": "when each was watched, seconds since 1970; an absent one is the request's time",
    "history_rating": "how each was rated; an absent one is unknown",
    "history_watch_time": "how long each was watched, seconds; an absent one is unknown",
    "impressions": "ids of what was shown and not watched, beside what is stored of the user",
    "impressions_time": "when each was shown, seconds since 1970; an absent one is the request's time",
    "time": "of the request, seconds since 1970",
    "query": "what is searched for; its known words count",
    "exclude": "ids never to return, beside the history and what is stored of the user",
    "include_only": "ids of which alone any are returned, such as what is in stock; with unknown ones only, none is",
    "diversity": "λ of the maximal marginal relevance, from 0, the order by score, to 1, as unlike as can be",
    "k": "how many items, at most the catalogue; 0 returns none",
    "candidates": "ids to score; an unknown or absent one scores 0",
    "item": "id of the item; an unknown one has no neighbours",
    "weights": "the confidence of each of `history`, 0 or more; an absent one is 1, any other is refused",
}
LETTERS = {
    **dict.fromkeys(MEANING, "[B]"),
    **{"history": "[B, L]", "exclude": "[B, E]", "candidates": "[B, C]", "weights": "[B, L]"},
    **{"count": "[B]", "contributions": "[B, L]"},
}
"""The shape of an input or output; an output that isn't named here is `[B, C]` of `rank`, else `[B, M]`."""
FOLDED = "ids of what was watched, in any order; unknown ids say nothing, a repeated one is one item"
OWN_MEANING = {
    "similar_users": {
        "user": "id of the user; an unknown one has no neighbours",
        "k": "how many users; 0 returns none",
    },
    "fold_in": {"history": f"{FOLDED}, whose weights are added up"},
    "explain": {"history": FOLDED, "item": "id of the item whose score is explained; an unknown one has zeros"},
}
"""What an input means in one signature, where it isn't the usual."""
OUTPUT = {
    "items": 'ids, best first; `""` past `count`',
    "users": 'ids, best first; `""` past `count`',
    "scores": "the higher the better; 0 where there is none",
    "sources": "the sources that proposed the item, best rank first, joined by `+`; `popularity` where there is no "
    "history; the first source for what none proposed",
    "count": "how many of them the row has",
    "reasons": "the id of what is most like the item among the last watched; none without a likeness, or past as many "
    "items as are ranked",
    "contributions": "what each of `history` adds to the item's score; 0 where padded, unknown or repeated",
    "expected_watch_time": "seconds, E[T]; 0 where there is no item, −1 past the shortlist and without any history",
}
SCORES = {
    "serving_default": "As `recommend`.",
    "recommend": "`scores` are the ranker's odds. Past the shortlist the order of the retrieval follows, with −1, −2 "
    "and so on. Without any history the items come by their recent popularity, unranked, and `scores` are its counts. "
    "With `diversity` an item keeps its score, whatever its place.",
    "retrieve": "As `recommend`, before ranking: `scores` are those of the fusion, Σ 1 / (60 + rank).",
    "rank": "`scores` are the ranker's odds, each candidate seen as a member of the request's own shortlist: one that "
    "is on it scores as in `recommend`. Without any history they are the recent popularity.",
    "similar_items": "`scores` are the cosines of the items' vectors.",
    "similar_users": "`scores` are the cosines of the users' trained factors. A user without a positive when WALS was "
    "trained has no neighbours, and is none.",
    "fold_in": "WALS alone, for a user whom nobody knows: `scores` are u·v with the exact factors u of a user who has "
    "just this history. Items of the history are not returned; without a known one of a weight above 0 none is.",
    "explain": "Hu, Koren and Volinsky's explanation: the `contributions` add up to the score that `fold_in` gives the "
    "item for this history, with all weights 1.",
}


def choose_requests(
    items: np.ndarray,
    users: np.ndarray,
    newest: int,
    oldest: int,
    said: Mapping[str, Any] | None = None,
    sources: Sequence[str] = (),
) -> list[Request]:
    """About twenty requests of every kind, the same for the same data.

    `items` and `users` are ids in the order of their vocabularies, at least one each; the times are those of the data;
    `said` is a value of everything else that a request may say; `sources` are those that have a quota.
    """

    def spread(ids: np.ndarray, count: int) -> list[str]:
        return [str(ids[i]) for i in np.unique(np.linspace(0, len(ids) - 1, count).astype(int))]

    known, few = spread(users, 8), spread(items, 3)
    requests: list[Request] = [{"user": user} for user in known[:5]]
    requests += [
        {"user": known[-1], "k": 1},
        {"user": known[0], "k": 50},
        {"user": known[-1], "exclude": spread(items[:50], 10)},
        {"user": known[0], "history": few},
        {"user": "", "history": few[:1]},
        {"user": "a new user", "history": few},
        {"user": "a new user", "history": spread(items, 30), "k": 20},
        {"user": "a new user", "history": few, "history_time": [oldest] * len(few), "time": newest + 3_600},
        {
            **{"user": "a new user", "history": few, "history_rating": [3.0], "history_watch_time": [60.0]},
            **{"impressions": spread(items, 5), "impressions_time": [oldest]},
        },
        {"user": "", "history": ["an unknown item", *few, "", "another"], "exclude": ["an unknown item", *few]},
        {"user": "", "history": ["an unknown item"]},
        {"user": known[-1], "history": ["an unknown item"], "time": oldest},
        {},
        {"k": 0},
        {"k": -7, "history": few},
        {"user": "", "history": few[:1], "include_only": [*spread(items, 9), "an unknown item"]},
        {"user": known[0], "diversity": 0.5, "include_only": ["an unknown item"]},
        {"user": known[0], "diversity": 0.5, **{f"quota_{name}": 3 + n for n, name in enumerate(sources)}},
    ]
    if said:
        unknown = {name: value if isinstance(value, float) else "an unknown one" for name, value in said.items()}
        requests += [{"user": "a new user", "history": few, **said}, {"user": known[0], **said}]
        requests += [{"user": known[0], **unknown}]
    if len(items) <= LARGE:
        requests += [{"user": known[0], "k": len(items) + 5}, {"k": len(items) + 5}]
    return requests


def recorded_inputs(
    requests: Sequence[Request], items: np.ndarray, contexts: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """The inputs of every signature for the requests: each alone, and those of common size in one batch."""
    batch = [r for r in requests if r.get("k", 0) <= 50]
    groups = [[r] for r in requests] + [batch]
    offered = [str(items[i]) for i in np.unique(np.linspace(0, len(items) - 1, 12).astype(int))]
    offered = [*offered, "an unknown item", "", offered[0]]
    of_items: list[Request] = [{"item": i, "k": r.get("k", -1)} for i, r in zip(offered * 2, requests, strict=False)]
    return {
        "serving_default": [{"examples": [{"b64": encode_example(r)} for r in group]} for group in groups],
        **{name: [_short(group, "exclude", "k", *contexts) for group in groups] for name in ("recommend", "retrieve")},
        "rank": [{**_short(group, *contexts), "candidates": [offered] * len(group)} for group in groups],
        "similar_items": [
            {"item": [r["item"] for r in group], "k": [r["k"] for r in group]}
            for group in [*([r] for r in of_items), [r for r in of_items if r["k"] <= 50]]
        ],
        "similar_users": [{name: _short(group, "k")[name] for name in ("user", "k")} for group in groups],
        "fold_in": [_weighed(_short(group, "k")) for group in groups],
        "explain": [
            {
                "history": _short(group)["history"],
                "item": [offered[n % len(offered)] for n in range(at, at + len(group))],
            }
            for at, group in enumerate(groups)
        ],
    }


def _weighed(short: dict[str, Any]) -> dict[str, Any]:
    """`fold_in`'s inputs of a short form: weights that are said, 0 among them, and one that is absent."""
    weights = [[(1.0, 0.0, 2.5, -1.0)[at % 4] for at in range(len(line))] for line in short["history"]]
    return {"history": short["history"], "weights": weights, "k": short["k"]}


def _short(group: Sequence[Request], *further: str) -> dict[str, Any]:
    """The short form of some requests, lists padded with ""."""
    defaults: dict[str, Any] = {"user": "", "history": [], "time": -1, "exclude": [], "k": -1}
    inputs = {}
    for name in ("user", "history", "time", *further):
        values = [r.get(name, defaults.get(name, "")) for r in group]
        if isinstance(values[0], list):
            width = max(1, *map(len, values))
            values = [[*v, *[""] * (width - len(v))] for v in values]
        inputs[name] = values
    return inputs


def encode_example(request: Request) -> str:
    """A request as a serialized `tf.Example`, in base 64."""
    import tensorflow as tf

    def feature(value: Any) -> Any:
        values = value if isinstance(value, list) else [value]
        if values and isinstance(values[0], str):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode() for v in values]))
        if values and isinstance(values[0], float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    features = tf.train.Features(feature={name: feature(value) for name, value in sorted(request.items())})
    return base64.b64encode(tf.train.Example(features=features).SerializeToString(deterministic=True)).decode()


def _meaning(name: str) -> str:
    if name.startswith("user_"):
        return f"the user's {name.removeprefix('user_')}; an absent one is that stored of the user"
    if name.startswith("quota_"):
        return f"how many items {name.removeprefix('quota_')} may propose; no more than when the bundle was made"
    if name.startswith("context_"):
        return f"the {name.removeprefix('context_')} of the request; an unknown one is as good as none"
    return MEANING[name]


def describe_signatures(
    signatures: Mapping[str, Any],
    example_features: Mapping[str, Any],
    defaults: Mapping[str, str],
    ranker_features: Sequence[str],
    sources: Sequence[str],
    name: str,
) -> str:
    """The bundle's interface as a page, from the signatures themselves."""

    def table(*columns: str) -> list[str]:
        return ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]

    served = f"-v DESTINATION/{name}:/models/{name} -e MODEL_NAME={name} {IMAGE}"
    lines = [
        f"# The signatures of `{name}`",
        "",
        f"Two stages in one SavedModel: {', '.join(f'`{s}`' for s in sources)} retrieve, a ranker orders. B is the "
        'batch; `""` (text) and −1 (numbers) mean absent, and pad. Outputs are `[B, M]`, M the largest k of the batch.',
        "",
        f"    docker run --rm -p 8501:8501 {served}",
    ]
    for signature, function in sorted(signatures.items()):
        lines += ["", f"## {signature}", "", SCORES[signature]]
        lines += table("input", "type", "meaning", "default")
        inputs, outputs = function.structured_input_signature[1], function.structured_outputs
        for n in sorted(inputs, key=lambda n: [*MEANING, n].index(n)):
            kind = f"{inputs[n].dtype.name} {LETTERS.get(n, '[B]')}"
            meaning = OWN_MEANING.get(signature, {}).get(n) or _meaning(n)
            lines.append(f"| `{n}` | {kind} | {meaning} | {defaults.get(n, 'none')} |")
        lines += table("output", "type", "meaning")
        for n in sorted(outputs, key=list(OUTPUT).index):
            letters = LETTERS.get(n, "[B, C]" if signature == "rank" else "[B, M]")
            lines.append(f"| `{n}` | {outputs[n].dtype.name} {letters} | {OUTPUT[n]} |")
    lines += ["", "## Features of an example", "", "Each may be left out; any other is ignored."]
    lines += table("feature", "type", "meaning", "default")
    for n, feature in example_features.items():
        kind = f"{feature.dtype.name}{'' if hasattr(feature, 'default_value') else ' list'}"
        meaning = _meaning(n)
        lines.append(f"| `{n}` | {kind} | {meaning} | {defaults[n]} |")
    lines += ["", "## What the ranker sees", "", ", ".join(f"`{n}`" for n in ranker_features), ""]
    return "\n".join(lines)
