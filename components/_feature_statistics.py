"""`Statistics` in the form that TensorFlow Data Validation and TFX read: a `FeatureStats.pb` a table."""

from typing import Any

from tensorflow_metadata.proto.v0 import statistics_pb2

from shortlist.components.artifacts import Statistics

FILE = "FeatureStats.pb"


def write_feature_statistics(statistics: Statistics) -> None:
    """Writes `Split-<table>/FeatureStats.pb` for every table of `statistics.json`."""
    for table, about in statistics.read_json("statistics.json")["tables"].items():
        folder = statistics / f"Split-{table}"
        folder.mkdir(exist_ok=True)
        found = feature_statistics(table, about)
        (folder / FILE).write_bytes(found.SerializeToString(deterministic=True))


def feature_statistics(table: str, about: dict[str, Any]) -> statistics_pb2.DatasetFeatureStatisticsList:
    """The statistics of a table. Of text there are counts, not the mean length, which `statistics.json` lacks."""
    found = statistics_pb2.DatasetFeatureStatisticsList()
    rows = about["rows"]
    data = found.datasets.add(name=table, num_examples=rows)
    for name, column in about["columns"].items():
        feature = data.features.add()
        feature.path.step.append(name)
        many = column["type"].startswith(("list", "large_list"))
        kind = column["type"].partition(": ")[2].rstrip(">") if many else column["type"]
        present = rows - column["nulls"]  # an empty list is there
        values = column["values"] if many else present
        if "standard_deviation" in column:
            feature.type = feature.INT if "int" in kind else feature.FLOAT
            common = feature.num_stats.common_stats
            _numbers(feature.num_stats, column)
        else:
            feature.type = feature.STRING
            common = feature.string_stats.common_stats
            _text(feature.string_stats, column)
        common.num_non_missing, common.num_missing = present, rows - present
        common.tot_num_values = values
        if present:
            common.avg_num_values = values / present
        if not many and present:
            common.min_num_values = common.max_num_values = 1
    return found


def _numbers(stats: Any, column: dict[str, Any]) -> None:
    if column["minimum"] is None:
        return
    stats.min, stats.max, stats.mean = column["minimum"], column["maximum"], column["mean"]
    stats.std_dev = column["standard_deviation"]
    stats.median = column["quantiles"]["0.5"]


def _text(stats: Any, column: dict[str, Any]) -> None:
    stats.unique = column.get("distinct", 0)
    for rank, (value, count) in enumerate(column.get("most_frequent", [])):
        text = value if isinstance(value, str) else str(value)
        stats.top_values.add(value=text, frequency=count)
        stats.rank_histogram.buckets.add(low_rank=rank, high_rank=rank, label=text, sample_count=count)
