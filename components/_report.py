"""What a report says of an evaluation, as tables (names of columns, rows of text) and sentences, whatever the page."""

from collections.abc import Mapping, Sequence
from typing import Any

Rows = tuple[list[str], list[list[str]]]

HEADLINE = ("ndcg@{low}", "hr@{low}", "recall@{high}", "coverage@{low}")
BESIDES = ("weighted_ndcg", "novelty", "diversity", "popularity_bias", "untouched", "gini")
PARTS = ("activity", "cold_user", "item_popularity", "cold_item", "genre")
"""The slices that stand in the model card; all others are in the page with plots and in the file."""
FEW = 20
"""Users of a slice that is called weak: with fewer it may be chance."""


def headline(metrics: Mapping[str, Any]) -> Rows:
    """The table that a run ends with: the names of its columns and its rows, as text."""
    cutoffs = _cutoffs(metrics)
    columns = [name.format(low=cutoffs[0], high=cutoffs[-1]) for name in HEADLINE]
    rows = []
    for system, values in metrics["systems"].items():
        users = next((v["users"] for v in values.values() if "users" in v), 0)
        rows.append([system, *(cell(values[column]) for column in columns), f"{users:,}"])
    names = {"ndcg": "NDCG", "hr": "HR", "recall": "Recall", "coverage": "Coverage"}
    titles = [names[kind] + "@" + k for kind, _, k in (column.partition("@") for column in columns)]
    return ["system", *titles, "users"], rows


def comparison(c: Mapping[str, Any]) -> str:
    """One paired difference as a sentence."""
    p = f", p {_p(c)}" if "p_holm" in c else ""
    what = f"{c['metric']} on {c['split']}, {c['system']} against {c['against']}"
    return f"{what}: {_difference(c)}{p}, {c['users']:,} users"


def differences(comparisons: Sequence[Mapping[str, Any]]) -> Rows:
    """All paired differences."""
    names = ("split", "metric", "system", "against")
    p = [_p(c).removeprefix("= ") if "p_holm" in c else "" for c in comparisons]
    rows = [[*(c[n] for n in names), _difference(c), p[i], f"{c['users']:,}"] for i, c in enumerate(comparisons)]
    return [*names, "difference", "p", "users"], rows


def added(contributions: Sequence[Mapping[str, Any]]) -> Rows:
    """What each source finds, and what only it does."""
    rows = []
    for c in contributions:
        shares = ("" if share is None else f"{share:.1%}" for share in (c["found"], c["only"]))
        rows.append([c["name"], cell(c["recall"]) if c["recall"] else "", *shares])
    return ["source", "recall", "positives found", "found by no other"], rows


def counted_added(size: int) -> str:
    """What the figures of `added` are of."""
    return (
        f"All lists have the same length, {size:,}. Recall is the mean over users; the shares are of all positives. "
        "The union is one list made of all sources; `any` is all their lists together, the most it could find. "
        "A source earns its place by what no other finds."
    )


TESTS = (
    "p: two-sided, by random exchange of the two systems' figures of each user, corrected by Holm's rule for the "
    "comparisons of the same split."
)


def besides(metrics: Mapping[str, Any]) -> Rows:
    """What the lists are like besides their accuracy, at the first cut-off; no rows where nothing was measured."""
    systems, low = metrics["systems"], _cutoffs(metrics)[0]
    names = [n for n in (f"{kind}@{low}" for kind in BESIDES) if any(n in own for own in systems.values())]
    rows = [[system, *(cell(own[n]) if n in own else "" for n in names)] for system, own in systems.items()]
    return ["system", *names], rows if names else []


def folding(metrics: Mapping[str, Any]) -> str:
    """What `untouched` says, and how far the groups lie on each other; "" where it was not measured."""
    found = metrics.get("folding")
    if not found:
        return ""
    groups = found["groups"]
    untouched = f"Untouched: the share of a list of {groups} that its user never touched."
    lying = [f"{name} {own['value']:.2f} (by chance {own['chance']:.2f})" for name, own in found["overlap"].items()]
    if not lying:
        return untouched
    return (
        f"{untouched} Of the 10 items nearest to an item, the share that has none of its {groups}: {', '.join(lying)}."
    )


def orders(judged: Mapping[str, Any]) -> Rows:
    """How well each order tells the positives of a page from the rest."""
    names = {
        "auc": "AUC",
        "user_auc": "AUC per user",
        "weighted_user_loss": "weighted per-user loss",
        "watch_time_lost": "share of all lost",
    }
    rows = [[system, *(cell(own[n]) if n in own else "" for n in names)] for system, own in judged["systems"].items()]
    return ["system", *names.values()], rows


def counted_orders(judged: Mapping[str, Any], what: str) -> str:
    """What the figures of `orders` are of; `what` are the rows of a page, such as candidates."""
    page = "shortlist" if what == "candidates" else "page"
    gain = {"watch_time": "watch time", "rating": "rating, the proxy for watch time,"}.get(judged["weight_from"])
    return (
        f"{judged['impressions']:,} {what}, {judged['positives']:,} of them positives. The loss is the share of "
        f"{f'the {gain}' if gain else 'the positives'} that a negative of the same {page} is ranked above."
    )


def weight(weight_from: str) -> str:
    """What a positive weighs, as a sentence."""
    return {
        "watch_time": "A positive weighs its watch time.",
        "rating": "A positive weighs its rating, a proxy for the watch time that the data does not have.",
    }.get(weight_from, "Every positive weighs 1: the data has neither watch time nor ratings.")


def deciles(calibration: Mapping[str, Sequence[Any]], what: str) -> Rows:
    """Expected against actual value by decile of the prediction."""
    columns = ("bucket", "rows", "expected", "actual", "error")
    rows = [
        [str(b + 1), f"{n:,}", f"{x:.4g}", f"{y:.4g}", "" if e is None else f"{e:+.0%}"]
        for b, n, x, y, e in zip(*(calibration[c] for c in columns), strict=True)
    ]
    return ["decile of the prediction", what, "expected", "actual", "error"], rows


def slice_metric(slices: Sequence[Mapping[str, Any]]) -> str:
    """NDCG at the first cut-off, "" where there is none."""
    names = [r["metric"] for r in slices if r["metric"].startswith("ndcg@")]
    return min(names, key=lambda n: int(n.partition("@")[2])) if names else ""


def slice_values(slices: Sequence[Mapping[str, Any]], system: str) -> list[Mapping[str, Any]]:
    """The rows of `slice_metric` of one system, in the order of the file."""
    metric = slice_metric(slices)
    return [r for r in slices if r["metric"] == metric and r["system"] == system]


def best_system(metrics: Mapping[str, Any], among: Sequence[str]) -> str:
    """The one of highest NDCG at the first cut-off; the first of equals."""
    name = f"ndcg@{_cutoffs(metrics)[0]}"
    return max(among, key=lambda system: metrics["systems"][system][name]["value"])


def protocol(metrics: Mapping[str, Any], splits: Mapping[str, Any]) -> list[str]:
    """How it was measured, a sentence each."""
    found = metrics["protocol"]
    threshold = found["positive_threshold"]
    lines = [
        f"Split: {found['strategy']}, seed {splits['seed']}. {found['guarantee']}",
        f"A positive is {'every watch' if threshold is None else f'a rating of at least {threshold:g}'}.",
        f"{found['users']:,} users with a target, {found['users_with_history']:,} of them with a history. "
        f"{found['targets']:,} targets, {found['targets_outside_catalogue']:.1%} of them outside the catalogue "
        f"of {found['catalogue']:,} items: they count as misses.",
    ]
    if "positives" in found:
        shares = [
            f"{found['not_retrieved'][s]:,} of {n:,} ({found['not_retrieved'][s] / max(n, 1):.0%}) in {s}"
            for s, n in found["positives"].items()
        ]
        lines.append(f"Positives that no source retrieved, dropped and not injected: {'; '.join(shares)}.")
        lines.append(
            "The ranker's features of a source are its log-rank and its score normalized per request, which mean the "
            "same before and after a refit; raw scores would not."
        )
    return [*lines, *found.get("notes", [])]


def weakest(slices: Sequence[Mapping[str, Any]], system: str, most: int = 3) -> list[str]:
    """The slices of lowest NDCG among those with enough users, lowest first."""
    known = [r for r in slice_values(slices, system) if r["users"] >= FEW]
    found = sorted(known, key=lambda r: r["value"])[:most]
    return [f"{r['slice']} = {r['part']}: {cell(r)}, {r['users']:,} users" for r in found]


def cell(value: Mapping[str, float]) -> str:
    """A figure with its interval, where it has one."""
    if "low" not in value:
        return f"{value['value']:.3f}"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _cutoffs(metrics: Mapping[str, Any]) -> list[int]:
    return sorted({int(name.partition("@")[2]) for rows in metrics["systems"].values() for name in rows})


def _difference(c: Mapping[str, Any]) -> str:
    return f"{c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}]"


def _p(c: Mapping[str, Any]) -> str:
    return "< .001" if c["p_holm"] < 0.001 else f"= {c['p_holm']:.3f}"
