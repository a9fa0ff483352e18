"""The evaluation as a page of Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEADLINE = ("ndcg@{low}", "hr@{low}", "recall@{high}", "coverage@{low}")
BESIDES = ("weighted_ndcg", "novelty", "diversity", "popularity_bias", "gini")
PARTS = ("activity", "cold_user", "item_popularity", "cold_item", "genre")
"""The slices that the page shows; the others are in the file."""


def headline(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table that a run ends with: the names of its columns and its rows, as text."""
    cutoffs = sorted({int(name.partition("@")[2]) for rows in metrics["systems"].values() for name in rows})
    columns = [name.format(low=cutoffs[0], high=cutoffs[-1]) for name in HEADLINE]
    rows = []
    for system, values in metrics["systems"].items():
        users = next((v["users"] for v in values.values() if "users" in v), 0)
        rows.append([system, *(_cell(values[column]) for column in columns), f"{users:,}"])
    names = {"ndcg": "NDCG", "hr": "HR", "recall": "Recall", "coverage": "Coverage"}
    titles = [names[kind] + "@" + k for kind, _, k in (column.partition("@") for column in columns)]
    return ["system", *titles, "users"], rows


def comparison(c: Mapping[str, Any]) -> str:
    """One paired difference as a sentence."""
    p = ""
    if "p_holm" in c:
        p = ", p < .001" if c["p_holm"] < 0.001 else f", p = {c['p_holm']:.3f}"
    return (
        f"{c['metric']} on {c['split']}, {c['system']} against {c['against']}: {c['difference']:+.4f} "
        f"[{c['low']:+.4f}, {c['high']:+.4f}]{p}, {c['users']:,} users"
    )


def write_report(
    path: Path,
    metrics: Mapping[str, Any],
    source: Mapping[str, Any],
    splits: Mapping[str, Any],
    slices: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes `report.md`: data and licence, protocol, figures, blessing; `slices` are the rows of `slices.parquet`."""
    titles, rows = headline(metrics)
    protocol = metrics["protocol"]
    threshold = protocol["positive_threshold"]
    differences = [f"- {comparison(c)}" for c in metrics["comparisons"]]
    lines = [
        f"# {source.get('name') or source.get('source')}: evaluation on `{metrics['split']}`",
        "",
        *_table(titles, rows),
        "",
        "Means over users, with 95 % intervals (bootstrap over users). The full catalogue is ranked, without the items "
        "that the user has seen.",
        "",
        f"**{'Blessed' if metrics['blessed'] else 'Not blessed'}.** " + " ".join(metrics["reasons"]),
        "",
        *(["## Paired differences", "", *differences, "", *_tests(metrics["comparisons"])] if differences else []),
        *_besides(metrics["systems"]),
        *_shortlist(metrics.get("shortlist")),
        *_slices(slices),
        "## Protocol",
        "",
        f"- Split: `{protocol['strategy']}`, seed {splits['seed']}. {protocol['guarantee']}",
        f"- A positive is {'every watch' if threshold is None else f'a rating of at least {threshold:g}'}.",
        f"- {protocol['users']:,} users with a target, {protocol['users_with_history']:,} of them with a history. "
        f"{protocol['targets']:,} targets, {protocol['targets_outside_catalogue']:.1%} of them outside the catalogue "
        f"of {protocol['catalogue']:,} items: they count as misses.",
    ]
    if "positives" in protocol:
        shares = [
            f"{protocol['not_retrieved'][s]:,} of {n:,} ({protocol['not_retrieved'][s] / max(n, 1):.0%}) in {s}"
            for s, n in protocol["positives"].items()
        ]
        lines.append(f"- Positives that no source retrieved, dropped and not injected: {'; '.join(shares)}.")
        lines.append(
            "- The ranker's features of a source are its log-rank and its score normalized per request, which mean the "
            "same before and after a refit; raw scores would not."
        )
    lines += [f"- {note}" for note in protocol.get("notes", [])]
    lines += [
        "",
        "## Data",
        "",
        f"- Source: `{source.get('source')}`, {source.get('rows', 0):,} rows, "
        f"{source.get('duplicates_dropped', 0):,} duplicates dropped.",
        f"- Licence: {source.get('licence')}",
        f"- Citation: {source.get('citation')}",
        "",
    ]
    path.write_text("\n".join(lines), "utf-8")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]


def _tests(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    if not any("p_holm" in c for c in comparisons):
        return []
    text = (
        "p: two-sided, by random exchange of the two systems' figures of each user, corrected by Holm's rule for the "
        "comparisons of the same split."
    )
    return [text, ""]


def _besides(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the lists are like besides their accuracy, at the first cut-off."""
    low = min(int(name.partition("@")[2]) for rows in systems.values() for name in rows)
    names = [n for n in (f"{kind}@{low}" for kind in BESIDES) if any(n in rows for rows in systems.values())]
    if not names:
        return []
    rows = [[system, *(_cell(own[n]) if n in own else "" for n in names)] for system, own in systems.items()]
    return ["## Beyond accuracy", "", *_table(["system", *names], rows), ""]


def _shortlist(judged: Mapping[str, Any] | None) -> list[str]:
    if judged is None:
        return []
    names = {
        "auc": "AUC",
        "user_auc": "AUC per user",
        "weighted_user_loss": "weighted per-user loss",
        "watch_time_lost": "share of all lost",
    }
    rows = [[system, *(_cell(own[n]) if n in own else "" for n in names)] for system, own in judged["systems"].items()]
    gain = {"watch_time": "watch time", "rating": "rating, the proxy for watch time,"}.get(judged["weight_from"])
    lines = [
        "## Within the shortlist",
        "",
        f"{judged['impressions']:,} candidates, {judged['positives']:,} of them positives. The loss is the share of "
        f"{f'the {gain}' if gain else 'the positives'} that a negative of the same shortlist is ranked above.",
        "",
        *_table(["system", *names.values()], rows),
        "",
    ]
    if "calibration" in judged:
        by = judged["calibration"]
        columns = ("bucket", "rows", "expected", "actual", "error")
        deciles = [
            [str(b + 1), f"{n:,}", f"{x:.4g}", f"{y:.4g}", "" if e is None else f"{e:+.0%}"]
            for b, n, x, y, e in zip(*(by[c] for c in columns), strict=True)
        ]
        titles = ["decile of the prediction", "candidates", "expected", "actual", "error"]
        lines += ["Expected against actual value of a candidate:", "", *_table(titles, deciles), ""]
    return lines


def _slices(slices: Sequence[Mapping[str, Any]]) -> list[str]:
    """NDCG at the first cut-off of the last system, by slice."""
    names = [r["metric"] for r in slices if r["metric"].startswith("ndcg@")]
    if not names:
        return []
    metric, system = min(names, key=lambda n: int(n.partition("@")[2])), slices[-1]["system"]
    shown = [r for r in slices if r["metric"] == metric and r["system"] == system and r["slice"] in PARTS]
    rows = [[r["slice"], r["part"], _cell(r), f"{r['users']:,}"] for r in shown]
    title = f"NDCG@{metric.partition('@')[2]} of {system}"
    return ["## Slices", "", *_table(["slice", "part", title, "users"], rows), ""]


def _cell(value: Mapping[str, float]) -> str:
    if "low" not in value:
        return f"{value['value']:.3f}"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
