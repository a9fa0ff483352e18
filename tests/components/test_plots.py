"""The page with plots: complete, escaped, drawn; what fails is shown."""

import json
import re
from collections.abc import Iterator
from typing import Any

import altair as alt
import pyarrow as pa
import pytest
from browser import chromium, opened

from shortlist.components._plots import DARK, LIGHT, Facts, Plot, Pre, Section, Table, config, number, page, png

NASTY = "</script><script>window.hacked = 1</script><b>&amp;"


def bars(values: dict[str, float]) -> alt.Chart:
    data = pa.table({"name": list(values), "value": list(values.values())})
    return alt.Chart(data, width="container", height=120).mark_bar().encode(x="value:Q", y="name:N")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def test_nothing_outside_the_page_is_named_to_be_fetched():
    text = page("t", [Section("a", items=[Plot(bars({"x": 1.0}), "bars")])])
    head = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"\b(?:src|href)=[\"'](?!#)", head)
    assert "@import" not in head
    assert "url(" not in head
    assert "default-src 'none'" in head


def test_the_libraries_stand_in_the_page_once_and_only_where_there_is_a_plot():
    plot = Plot(bars({"x": 1.0}), "bars")
    one, three = (len(page("t", [Section("a", items=[plot] * n)])) for n in (1, 3))
    assert one > 500_000
    assert three - one < 10_000
    assert len(page("t", [Section("a", "text", [Pre("x"), Facts({"a": 1})])])) < 20_000


def test_all_text_is_escaped():
    items = [
        Plot(bars({NASTY: 1.0}), NASTY, NASTY),
        Table([NASTY], [[NASTY]], NASTY, {0: NASTY}),
        Facts({NASTY: NASTY}),
        Pre(NASTY),
    ]
    text = page(NASTY, [Section(NASTY, NASTY, items)])
    assert "<script>window.hacked" not in text
    assert "<b>" not in text
    assert text.count("&lt;/script&gt;&lt;script&gt;window.hacked") == 14


def test_the_data_of_a_chart_survives_its_escaping():
    text = page("t", [Section("a", items=[Plot(bars({NASTY: 1.0}), NASTY)])])
    spec = json.loads(re.search(r'aria-label.*?<script type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    (rows,) = spec["datasets"].values()
    assert rows == [{"name": NASTY, "value": 1.0}]
    assert spec["description"] == NASTY
    assert "config" not in spec


def test_headings_are_linked_where_there_are_several():
    text = page("t", [Section(name) for name in ("One", "Two", "Three")])
    links = re.findall(r'<a href="#(\w+)">(\w+)</a>', text)
    assert [name for _, name in links] == ["One", "Two", "Three"]
    assert all(f'<h2 id="{place}">{name}</h2>' in text for place, name in links)
    assert "<nav" not in page("t", [Section("One"), Section("Two")])


@pytest.mark.parametrize(
    ("column", "right"),
    [
        ([1, 2.5, None], True),
        (["0.119 [0.107, 0.131]", "–"], True),
        (["12 s", "1.5 min"], True),
        (["+3.4 %", "−1 %"], True),
        (["[128, 64]", "[]"], False),
        ([True, 1], False),
        ([None, None], False),
        (["3 items", 4], False),
    ],
)
def test_a_column_of_numbers_is_set_right(column, right):
    text = page("t", [Section("a", items=[Table(["name"], [[cell] for cell in column])])])
    assert ('<th class="number">name</th>' in text) is right
    assert text.count('<td class="number">') == len(column) * right


def test_a_table_without_rows_has_its_head():
    assert "<th>a</th><th>b</th>" in page("t", [Section("s", items=[Table(["a", "b"], [])])])


@pytest.mark.parametrize(
    ("value", "text"),
    [(1204, "1,204"), (0.00312345, "0.003123"), (1.2e-5, "1.2e-05"), (12345.6, "1.235e+04"), (2.0, "2")],
)
def test_numbers_as_they_are_read(value, text):
    assert number(value) == text


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_stand_out_from_their_ground(colours):
    for ground in (colours["ground"], colours["card"]):
        assert contrast(colours["ink"], ground) >= 7  # WCAG 1.4.6
        assert contrast(colours["muted"], ground) >= 4.5  # WCAG 1.4.3
        assert contrast(colours["category"][0], ground) >= 4.5  # links
        assert all(contrast(colour, ground) >= 3 for colour in colours["category"])  # WCAG 1.4.11


def test_the_theme_is_ours_only_inside_a_page(tmp_path):
    before = alt.theme.active
    page("t", [Section("a", items=[Plot(bars({"x": 1.0}), "bars")])])
    assert alt.theme.active == before != "shortlist"
    with alt.theme.enable("shortlist"):
        assert bars({"x": 1.0}).to_dict()["config"] == config(LIGHT)


def test_a_png_is_as_wide_as_asked_at_two_pixels_a_point(tmp_path):
    png(bars({"a": 1.0, "b": 2.0}), tmp_path / "a.png", width=400)
    data = (tmp_path / "a.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == pytest.approx(800, abs=4)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_page_is_drawn_in_the_colours_of_its_ground(browser, tmp_path, width, dark):
    colours = DARK if dark else LIGHT
    wide = Table([f"column {i}" for i in range(40)], [list(range(40))], "Wide")
    items = [Plot(bars({"a": 1.0, NASTY: 2.0}), "two bars"), wide, Pre("x" * 500), Facts({"a": "b" * 200})]
    path = tmp_path / "page.html"
    path.write_text(page("A" * 60, [Section("Heading", "w" * 300, items)]), "utf-8")
    with opened(browser, path, width, dark) as shown:
        assert shown.evaluate("window.hacked") is None
        assert shown.locator(".plot").get_attribute("aria-label") == "two bars"
        bar = shown.locator(".plot .mark-rect path").first.get_attribute("fill")
        assert bar == colours["category"][0]
        ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == f"rgb({', '.join(str(int(colours['ground'][i : i + 2], 16)) for i in (1, 3, 5))})"
        shown.emulate_media(color_scheme="light" if dark else "dark")
        other = (LIGHT if dark else DARK)["category"][0]
        shown.wait_for_function(f"document.querySelector('.plot .mark-rect path')?.getAttribute('fill') == '{other}'")


@pytest.mark.slow
def test_a_plot_that_cannot_be_drawn_is_shown(browser, tmp_path):
    broken = alt.Chart(alt.Data(values=[{"a": 1}]), width="container").mark_bar().encode(x="a:Q")
    broken = broken.transform_filter("this is no expression")
    path = tmp_path / "page.html"
    path.write_text(page("t", [Section("a", items=[Plot(broken, "broken"), Plot(bars({"x": 1.0}), "bars")])]), "utf-8")
    with pytest.raises(AssertionError, match=r"a script failed\.[\s\S]*broken:"), opened(browser, path):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<script>throw new Error('no')</script>", "no"),
        ("<script>Promise.reject(new Error('late'))</script>", "late"),
        ("<img src='https://example.org/a.png'>", "example.org|could not be loaded"),
        ("<script>console.error('loud')</script>", "console: loud"),
        ("<div style='width:3000px'>x</div>", "pixels wide in a window of 1280"),
    ],
)
def test_what_is_wrong_with_a_page_fails_its_test(browser, tmp_path, body, message):
    text = page("t", [Section("a", "b")])
    path = tmp_path / "page.html"
    path.write_text(text.replace("<main>", f"<main>{body}", 1), "utf-8")
    with pytest.raises(AssertionError, match=message), opened(browser, path):
        pass


@pytest.mark.slow
def test_a_plot_without_marks_fails_its_test(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page("t", [Section("a", items=[Plot(bars({}), "nothing")])]), "utf-8")
    with pytest.raises(AssertionError, match="no marks in the plot 'nothing'"), opened(browser, path):
        pass
