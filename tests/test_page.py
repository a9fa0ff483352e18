"""The page of the server: what it answers, and how it works in a browser, for everyone."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serving_data
import small_run
from browser import chromium, page_of, until
from server_process import Server, serving

from shortlist.components._catalogue import Catalogue, write_catalogue

HOSTILE = "<img src=x onerror=alert(1)><b>Bold</b> & \"quoted\" 'it'"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Of a run on films that have a place among four tastes."""
    with serving(small_run.finished(tmp_path_factory) / "run") as server:
        yield server


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Of a bundle with a context, with one title that is markup."""
    folder = tmp_path_factory.mktemp("foreign")
    model = shutil.copytree(serving_data.build(folder / "run")["Exporter"] / "saved_model", folder / "1")
    catalogue = Catalogue.read(model)
    assert catalogue
    items = catalogue.items
    titles = [HOSTILE if place == 0 else item.title for place, item in enumerate(items)]
    write_catalogue(
        model, [i.id for i in items], titles, [i.year for i in items], [i.genres for i in items], catalogue.about
    )
    with serving(model) as server:
        yield server


# --- what it answers -------------------------------------------------------------------------------------------------


def test_recommendations_have_titles_sources_and_reasons(server: Server) -> None:
    history = ["i1", "i5", "i9"]
    status, found = server.post("/page/recommend", {"history": history, "k": 10})
    assert status == 200
    assert len(found["ranked"]) == 10
    for item in found["ranked"]:
        number = int(item["film"]["id"][1:])
        assert item["film"]["title"] == f"Film {number}"
        assert item["film"]["genres"] == [["Drama", "Comedy", "Crime", "War"][number % 4]]
        assert item["reason"] is None or item["reason"]["id"] in history
        assert set(item["sources"]) <= {"wals", "two_tower", "ease"}
    assert sum(item["reason"] is not None for item in found["ranked"]) > 5
    assert [film["id"] for film in found["watched"]] == history[::-1]
    assert found["watched_count"] == 3


def test_the_ranked_list_is_the_answer_to_the_request_beside_it(server: Server) -> None:
    for question in ({"user": "u7"}, {"history": ["i2"], "diversity": 0.7, "k": 4}, {}, {"time": 1_600_000_000}):
        _, found = server.post("/page/recommend", question)
        status, answer = server.predict(found["request"])
        assert status == 200
        count = answer["outputs"]["count"][0]
        assert [item["film"]["id"] for item in found["ranked"]] == answer["outputs"]["items"][0][:count]
        assert count == question.get("k", 10)


def test_the_shortlist_is_told_by_source(server: Server) -> None:
    _, found = server.post("/page/recommend", {"user": "u7"})
    inputs = {"user": ["u7"], "history": [[""]], "exclude": [[""]], "time": [-1], "k": [60]}
    _, answer = server.predict({"signature_name": "retrieve", "inputs": inputs})
    sources = answer["outputs"]["sources"][0][: found["size"]]
    assert (
        0
        < found["size"]
        == sum(score >= 0 for score in answer["outputs"]["scores"][0][: answer["outputs"]["count"][0]])
    )
    for part in found["shortlist"]:
        places = [n for n, names in enumerate(sources, 1) if names.split("+")[0] == part["source"]]
        assert part["count"] == sum(part["source"] in names.split("+") for names in sources)
        assert part["places"] == places[:8]
        items = answer["outputs"]["items"][0]
        assert [film["id"] for film in part["films"]] == [items[n - 1] for n in places[:8]]


def test_a_user_has_what_the_data_says(server: Server) -> None:
    _, found = server.post("/page/recommend", {"user": "u7"})
    assert found["watched_count"] == small_run.EVENTS
    assert len(found["watched"]) == 12
    assert not {film["id"] for film in found["watched"]} & {item["film"]["id"] for item in found["ranked"]}
    users = server.get("/page/users?q=u11")[1]
    assert users[0] == "u11"
    assert len(users) == 8
    assert set(users[1:]) < {f"u11{n}" for n in range(10)}
    _, unknown = server.post("/page/recommend", {"user": "nobody"})
    assert unknown["watched_count"] == 0
    assert {tuple(item["sources"]) for item in unknown["ranked"]} == {("popularity",)}


def test_a_context_changes_what_is_recommended(foreign: Server) -> None:
    assert foreign.get("/page/model")[1]["contexts"] == [{"name": "context_place", "conditions": ["train", "home"]}]
    answers = [
        foreign.post("/page/recommend", {"history": ["Ärger-1"], "context": context})
        for context in ({}, {"context_place": "home"}, {"context_place": "train"})
    ]
    assert all(status == 200 for status, _ in answers)
    assert [found["request"]["inputs"]["context_place"] for _, found in answers] == [[""], ["home"], ["train"]]


@pytest.mark.parametrize(
    ("question", "status", "message"),
    [
        ({"k": 0}, 422, "`body.k`: Input should be greater than or equal to 1"),
        ({"k": 101}, 422, "`body.k`: Input should be less than or equal to 100"),
        ({"k": "many"}, 422, "`body.k`: Input should be a valid integer"),
        (b'{"diversity": NaN}', 422, "`body.diversity`: Input should be"),
        ({"history": ["i1"] * 501}, 422, "`body.history`: List should have at most 500 items"),
        ({"user": "u" * 513}, 422, "`body.user`: String should have at most 512 characters"),
        ({"seed": 1}, 422, "`body.seed`: Extra inputs are not permitted"),
        ({"context": {"mood": "good"}}, 400, "`context` must name dimensions of the model: none."),
        (b'{"user": "\\ud800"}', 422, "`body.user`: Input should be a valid string"),
        (b"{", 422, "`body.1`: JSON decode error"),
        (None, 422, "`body`: Input should be"),
    ],
)
def test_what_is_no_question_is_refused(server: Server, question: Any, status: int, message: str) -> None:
    headers = {"Content-Type": "application/json"}
    body = question if isinstance(question, bytes) else json.dumps(question).encode()
    got, found, _ = server.send("POST", "/page/recommend", body, headers)
    assert (got, json.loads(found)["error"][: len(message)]) == (status, message)


def test_items_are_found_and_similar_ones_named(server: Server) -> None:
    assert server.get("/page/items?q=film%2042")[1][0] == {
        "id": "i42",
        "title": "Film 42",
        "year": 0,
        "genres": ["Crime"],
    }
    _, found = server.get("/page/similar?item=i42")
    assert len(found) == 8
    assert all(-1 <= other["score"] <= 1.000001 for other in found)
    assert server.get("/page/similar?item=none") == (200, [])
    assert server.get("/page/similar")[0] == 422


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def visit(browser: Any, server: Server, width: int = 1280, dark: bool = False) -> Any:
    return page_of(browser, f"{server.url}/", (server.url, "data:"), width, dark, permissions=["clipboard-write"])


def answered(page: Any, more_than: int = 0) -> int:
    until(page, f"Number(document.documentElement.dataset.answers || 0) > {more_than}")
    return int(page.evaluate("document.documentElement.dataset.answers"))


def titles(page: Any) -> list[str]:
    return page.locator("#list .title").all_inner_texts()


def pick(page: Any, words: str) -> None:
    before = answered(page)
    page.fill("#search", words)
    page.locator("#found [role=option]").first.wait_for()
    until(page, f"document.querySelector('#found [role=option]')?.textContent.startsWith({json.dumps(words)})")
    page.locator("#found [role=option]").first.click()
    answered(page, before)


def test_three_films_ten_recommendations_each_with_a_reason(browser: Any, server: Server) -> None:
    with visit(browser, server) as (page, _):
        answered(page)
        assert page.inner_text("#ranked-text") == "Nothing watched yet: this is what was watched most lately."
        for words in ("Film 21", "Film 25", "Film 29"):
            pick(page, words)
        assert page.locator("#chips li").all_inner_texts() == ["Film 21", "Film 25", "Film 29"]
        assert len(titles(page)) == 10
        reasons = page.locator("#list .why").all_inner_texts()
        _, found = server.post("/page/recommend", {"history": ["i21", "i25", "i29"]})
        expected = [f"most like {i['reason']['title']}" for i in found["ranked"] if i["reason"]]
        assert reasons == expected
        assert len(reasons) > 5
        assert page.locator("#list .tags").count() == 10
        assert {s.strip() for s in page.locator("summary .tag").all_inner_texts()} == {"wals", "two tower", "ease"}
        # fewer, and more varied
        before, plain = answered(page), titles(page)
        page.locator("#k").fill("5")
        before = answered(page, before)
        assert titles(page) == plain[:5]
        page.locator("#diversity").fill("1")
        before = answered(page, before)
        assert page.inner_text("#diversity-value") == "1.00"
        assert titles(page) != plain[:5]
        page.locator("#time").fill("2020-10-01T12:00")
        answered(page, before)
        # what is similar to the first, there and gone again
        first = page.locator("#list .title").first
        first.click()
        page.locator(".alike li").first.wait_for()
        assert page.locator(".alike li").count() == 8
        assert first.get_attribute("aria-expanded") == "true"
        before = answered(page)
        page.locator(".alike button").first.click()
        answered(page, before)
        assert page.locator("#chips li").count() == 4
        # one is taken away
        before = answered(page)
        page.get_by_role("button", name="Remove Film 25").click()
        answered(page, before)
        assert page.locator("#chips li").count() == 3


def test_the_line_to_copy_asks_for_what_is_shown(browser: Any, server: Server) -> None:
    with visit(browser, server) as (page, _):
        pick(page, "Film 21")
        page.click("#copy")
        page.get_by_text("Copied").first.wait_for()
        line = page.inner_text("#curl")
        found = re.fullmatch(r"curl -d '(\{.*\})' (http://\S+):predict", line)
        assert found
        assert found[2] == f"{server.url}/v1/models/shortlist"
        _, answer = server.predict(json.loads(found[1]))
        assert [f"Film {item[1:]}" for item in answer["outputs"]["items"][0]] == titles(page)


def test_a_user_of_the_data(browser: Any, server: Server) -> None:
    with visit(browser, server) as (page, _):
        before = answered(page)
        page.get_by_text("A user of the data").click()
        page.fill("#users", "u7")
        page.get_by_role("option", name="u7", exact=True).click()
        page.locator("#chips li.more").wait_for()
        assert page.inner_text("#watched-heading") == "User u7 watched 20 items, the last first"
        assert page.inner_text("#chips li.more") == "and 8 more"
        assert page.locator("#chips button").count() == 0
        assert page.locator("#list .tags").count() == 10
        assert answered(page) > before


def test_the_keyboard_alone_is_enough(browser: Any, server: Server) -> None:
    def focused() -> str:
        return page.evaluate("document.activeElement.id || document.activeElement.className")

    with visit(browser, server, 1280) as (page, _):
        before = answered(page)
        page.keyboard.press("Tab")
        assert focused() == "skip"
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert focused() == "search"
        for words in ("Film 21", "Film 25", "Film 29"):
            page.keyboard.type(words)
            marked = "#found:not([hidden]) [role=option][aria-selected=true]"
            until(page, f"document.querySelector('{marked}')?.textContent.startsWith('{words}')")
            page.keyboard.press("Enter")
            before = answered(page, before)
        assert page.locator("#chips li").count() == 3
        page.keyboard.type("Film")
        page.locator("#found [role=option]").first.wait_for()
        page.keyboard.press("ArrowDown")
        second = page.locator("#found [role=option]").nth(1)
        assert page.get_attribute("#search", "aria-activedescendant") == second.get_attribute("id")
        page.keyboard.press("Escape")
        assert page.locator("#found").is_hidden()
        for _ in "Film":
            page.keyboard.press("Backspace")
        page.keyboard.press("Backspace")  # of an empty field: the last one goes
        before = answered(page, before)
        assert page.locator("#chips li").count() == 2
        while focused() != "k":
            page.keyboard.press("Tab")
        page.keyboard.press("ArrowLeft")
        before = answered(page, before)
        assert len(titles(page)) == 9
        while focused() != "title":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.locator(".alike li").first.wait_for()
        while focused() != "copy":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")


def test_a_context_and_markup_in_a_title(browser: Any, foreign: Server) -> None:
    with visit(browser, foreign) as (page, _):
        before = answered(page)
        assert page.inner_text("label[for=context_place]") == "Place"
        page.select_option("#context_place", "train")
        answered(page, before)
        assert '"context_place":["train"]' in page.inner_text("#curl")
        page.fill("#search", "Bold")
        page.get_by_role("option").first.wait_for()
        assert HOSTILE in page.get_by_role("option").first.inner_text()
        page.get_by_role("option").first.click()
        page.locator("#chips li").first.wait_for()
        assert HOSTILE in page.locator("#chips li").first.inner_text()
        assert page.locator("main img, main b b, #chips b").count() == 0
        assert HOSTILE in page.locator("#list .why").first.inner_text()


def test_a_server_that_is_gone_is_told(browser: Any, tmp_path_factory: pytest.TempPathFactory, foreign: Server) -> None:
    with visit(browser, foreign) as (page, wrong):
        answered(page)
        page.route("**/page/recommend", lambda route: route.abort())
        page.locator("#k").fill("3")
        page.get_by_role("alert").wait_for()
        assert "The server does not answer" in page.inner_text("#error")
        page.unroute("**/page/recommend")
        page.locator("#k").fill("4")
        page.locator("#error").wait_for(state="hidden")
        wrong[:] = [text for text in wrong if "Failed to load resource" not in text]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_in_anybodys_way(browser: Any, server: Server, width: int, dark: bool, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with visit(browser, server, width, dark) as (page, _):

        def judge() -> None:
            until(page, "document.getAnimations().length === 0")  # a fade has less contrast while it lasts
            found = axe.run(page)
            assert found.violations_count == 0, found.generate_report()

        answered(page)
        judge()
        for words in ("Film 21", "Film 25", "Film 29"):
            pick(page, words)
        page.locator("#list .title").first.click()
        page.locator(".alike li").first.wait_for()
        judge()
        page.fill("#search", "Film")
        page.locator("#found [role=option]").first.wait_for()
        judge()
