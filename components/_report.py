"""The evaluation as a page of Markdown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEADLINE = ("ndcg@{low}", "hr@{low}", "recall@{high}", "coverage@{low}")


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
    return (
        f"{c['metric']} on {c['split']}, {c['system']} against {c['against']}: {c['difference']:+.4f} "
        f"[{c['low']:+.4f}, {c['high']:+.4f}], {c['users']:,} users"
    )


def write_report(path: Path, metrics: Mapping[str, Any], source: Mapping[str, Any], splits: Mapping[str, Any]) -> None:
    """Writes `report.md`: data and licence, protocol, figures, blessing."""
    titles, rows = headline(metrics)
    protocol = metrics["protocol"]
    threshold = protocol["positive_threshold"]
    differences = [f"- {comparison(c)}" for c in metrics["comparisons"]]
    lines = [
        f"# {source.get('name') or source.get('source')}: evaluation on `{metrics['split']}`",
        "",
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(titles),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "Means over users, with 95 % intervals (bootstrap over users). The full catalogue is ranked, without the items "
        "that the user has seen.",
        "",
        f"**{'Blessed' if metrics['blessed'] else 'Not blessed'}.** " + " ".join(metrics["reasons"]),
        "",
        *(["## Paired differences", "", *differences, ""] if differences else []),
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


def _cell(value: Mapping[str, float]) -> str:
    if "low" not in value:
        return f"{value['value']:.3f}"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
