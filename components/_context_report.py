"""The page and the plot of an experiment with context."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shortlist.components._plots import Facts, Plot, Section, Table, page, png
from shortlist.components._report_plots import interval_chart

COLUMNS = ("rmse", "mae", "ndcg@10", "recall@10", "map@10")


def write_report(found: Mapping[str, Any], folder: Path) -> None:
    """Writes `report.html`, and `context.png`: the differences in RMSE from the factorization without context."""
    rmse, ndcg = (_differences(found, metric) for metric in ("rmse", "ndcg@10"))
    png(rmse.chart, folder / "context.png")
    facts = {name: found[name] for name in ("data", "rows", "users", "items")}
    facts["dimensions"] = ", ".join(f"{name} ({size})" for name, size in found["contexts"].items())
    settings = found["settings"]
    how = (
        f"{settings['folds']} folds, {len(settings['fold_seeds'])} times; settings chosen by RMSE among "
        f"{settings['trials']} on {settings['inner_folds']} inner folds. RMSE and MAE: means over folds. Ranking: "
        f"means over users of queries (a user and a context); a rating of at least {settings['high_rating']:g} is "
        "relevant."
    )
    rows = [[name, *(shown(own.get(metric)) for metric in COLUMNS)] for name, own in found["methods"].items()]
    against = [
        [
            d["metric"],
            d["method"],
            f"{d['difference']:+.4f}",
            f"{d['low']:+.4f}, {d['high']:+.4f}",
            f"{d['p_holm']:.4f}",
        ]
        for d in found["differences"]
    ]
    head = ("metric", "method", "difference", "95 % interval", "p, corrected")
    sections = [
        Section("Data", "", [Facts(facts)]),
        Section("Methods", how, [Table(("method", *COLUMNS), rows)]),
        Section("Against biased_mf", "", [rmse, ndcg, Table(head, against)]),
    ]
    (folder / "report.html").write_text(page("Recommendation with context", sections), "utf-8")


def shown(figure: Mapping[str, float] | None) -> str:
    """A figure with its interval, such as `.912 [.890, .934]`."""
    if figure is None:
        return ""
    value, low, high = (f"{figure[name]:.3f}".replace("0.", ".", 1) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _differences(found: Mapping[str, Any], metric: str) -> Plot:
    rows = [
        {"name": d["method"], "value": d["difference"], "low": d["low"], "high": d["high"]}
        for d in found["differences"]
        if d["metric"] == metric
    ]
    label = f"Differences in {metric} from biased_mf, with intervals."
    better = "Left" if metric == "rmse" else "Right"
    caption = f"{better} of the line is better than biased_mf. Lines are 95 % intervals over users."
    return Plot(interval_chart(rows, f"difference in {metric}", zero=True), label, caption)
