"""What the page of the server asks for: titles, users, and recommendations with their reasons.

Each answer comes from the same requests that any client sends; the page shows them as a line to copy.
"""

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import pydantic

from shortlist.components._catalogue import Catalogue
from shortlist.components._openapi import refusals
from shortlist.components._records import encode_example
from shortlist.components._rest import INVALID, NOT_FOUND, RestError
from shortlist.components._theme import FONT, variables
from shortlist.components._versions import Versions

if TYPE_CHECKING:
    from fastapi import FastAPI

Found = TypeVar("Found")
Ask = Callable[[str, str, bytes, float], tuple[int, bytes]]
FOUND, SHOWN, LAST, ALIKE = 8, 8, 12, 8  # search results, items of a source, items watched, similar items
Id = Annotated[str, pydantic.StringConstraints(max_length=512)]
Words = Annotated[str, pydantic.StringConstraints(max_length=200)]
FILES = {"page.css": "text/css", "page.js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class Film(pydantic.BaseModel):
    """An item as the page shows it; `year` is 0 where it is unknown."""

    id: str
    title: str
    year: int
    genres: list[str]


class Ranked(pydantic.BaseModel):
    """An item of the ranked list: `expected` are seconds, where they were learned; `reason` is what is most like it
    among the last watched."""

    film: Film
    score: float
    expected: float | None
    sources: list[str]
    reason: Film | None


class Proposed(pydantic.BaseModel):
    """What a source has in the shortlist: how many, and the first of those that it has higher than any other source,
    with their places."""

    source: str
    count: int
    films: list[Film]
    places: list[int]


class Answer(pydantic.BaseModel):
    """Both stages' answers, what is known of the user, and the request that gave the ranked list."""

    ranked: list[Ranked]
    shortlist: list[Proposed]
    size: int
    watched: list[Film]
    watched_count: int
    request: dict[str, Any]


class Alike(pydantic.BaseModel):
    """An item with the cosine of the vectors."""

    film: Film
    score: float


class Dimension(pydantic.BaseModel):
    """A context of a request, and the conditions that it may have."""

    name: str
    conditions: list[str]


class About(pydantic.BaseModel):
    """What the page offers."""

    name: str
    version: int
    items: int
    users: int
    sources: list[str]
    contexts: list[Dimension]
    diversity: bool
    most: int


class Question(pydantic.BaseModel):
    """What is asked: for someone who watched `history`, oldest first, or for a known user."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    history: list[Id] = pydantic.Field([], max_length=500)
    user: Id = ""
    context: dict[Id, Id] = pydantic.Field({}, max_length=50)
    time: int = pydantic.Field(-1, ge=-1, le=253_402_300_799)
    k: int = pydantic.Field(10, ge=1, le=100)
    diversity: float = pydantic.Field(0.0, ge=0.0, le=1.0)


class Page:
    """Turns what people pick into requests, and ids into titles.

    Args:
      versions: of the model.
      name: the model's.
      ask: answers a request of TF Serving's interface.
    """

    def __init__(self, versions: Versions, name: str, ask: Ask):
        self.versions, self.name, self._ask = versions, name, ask

    @contextmanager
    def _catalogue(self) -> Iterator[Catalogue]:
        with self.versions.using(self.name) as version:
            if version.catalogue is None:
                raise RestError(
                    NOT_FOUND, "This model was exported without titles: export it again to look at it here."
                )
            yield version.catalogue

    def about(self) -> About:
        with self._catalogue() as catalogue, self.versions.using(self.name) as version:
            return About(
                name=self.name,
                version=version.number,
                items=len(catalogue.items),
                users=len(catalogue.users),
                sources=catalogue.about["sources"],
                contexts=[Dimension(name=n, conditions=c) for n, c in catalogue.about["contexts"].items()],
                diversity="diversity" in catalogue.about["features"],
                most=100,
            )

    def find(self, words: str) -> list[Film]:
        with self._catalogue() as catalogue:
            return [Film(**vars(item)) for item in catalogue.find(words, FOUND)]

    def find_users(self, start: str) -> list[str]:
        with self._catalogue() as catalogue:
            return catalogue.find_users(start, FOUND)

    def recommend(self, question: Question, deadline: float) -> Answer:
        with self._catalogue() as catalogue:
            unknown = question.context.keys() - catalogue.about["contexts"].keys()
            if unknown:
                known = ", ".join(catalogue.about["contexts"]) or "none"
                raise RestError(INVALID, f"`context` must name dimensions of the model: {known}.")
            short = self._short(question, catalogue)
            request = {"signature_name": "recommend", "inputs": short}
            if question.diversity > 0:
                said = {
                    "user": question.user,
                    "history": question.history,
                    "time": question.time,
                    "k": question.k,
                    "diversity": question.diversity,
                    **question.context,
                }
                example = {
                    "b64": encode_example({name: value for name, value in said.items() if value not in ("", [])})
                }
                request = {"signature_name": "serving_default", "inputs": {"examples": [example]}}
            outputs = self._outputs(request, deadline)
            proposed = self._outputs(
                {"signature_name": "retrieve", "inputs": {**short, "k": [catalogue.about["size"]]}}, deadline
            )
            watched = [catalogue.get(item) for item in question.history[::-1]] or catalogue.watched(question.user)
            shortlist = self._by_source(proposed, catalogue)
            return Answer(
                ranked=self._ranked(outputs, catalogue),
                shortlist=shortlist,
                size=len(self._proposals(proposed)),
                watched=[Film(**vars(item)) for item in watched[:LAST]],
                watched_count=len(watched),
                request=request,
            )

    def similar(self, item: str, deadline: float) -> list[Alike]:
        request = {"signature_name": "similar_items", "inputs": {"item": [item], "k": [ALIKE]}}
        with self._catalogue() as catalogue:
            found = self._outputs(request, deadline)
            count = found["count"][0]
            pairs = zip(found["items"][0][:count], found["scores"][0][:count], strict=True)
            return [Alike(film=Film(**vars(catalogue.get(i))), score=score) for i, score in pairs]

    def _short(self, question: Question, catalogue: Catalogue) -> dict[str, Any]:
        return {
            "user": [question.user],
            "history": [question.history or [""]],
            "exclude": [[""]],
            "time": [question.time],
            "k": [question.k],
            **{name: [question.context.get(name, "")] for name in catalogue.about["contexts"]},
        }

    def _outputs(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        status, body = self._ask("POST", f"/v1/models/{self.name}:predict", json.dumps(request).encode(), deadline)
        found = json.loads(body)
        if status != 200:
            raise RestError(status, str(found.get("error", "TF Serving refuses the request.")))
        return found["outputs"]

    def _ranked(self, outputs: dict[str, Any], catalogue: Catalogue) -> list[Ranked]:
        found = []
        for place, item in enumerate(outputs["items"][0][: outputs["count"][0]]):
            expected = outputs["expected_watch_time"][0][place] if "expected_watch_time" in outputs else -1.0
            reason = outputs["reasons"][0][place]
            found.append(
                Ranked(
                    film=Film(**vars(catalogue.get(item))),
                    score=outputs["scores"][0][place],
                    expected=expected if expected >= 0 else None,
                    sources=outputs["sources"][0][place].split("+"),
                    reason=Film(**vars(catalogue.get(reason))) if reason else None,
                )
            )
        return found

    def _proposals(self, outputs: dict[str, Any]) -> list[tuple[str, list[str]]]:
        """The shortlist: items with their sources. What has a score below 0 only follows it."""
        rows = zip(outputs["items"][0], outputs["sources"][0], outputs["scores"][0], strict=True)
        count = outputs["count"][0]
        return [(item, sources.split("+")) for item, sources, score in list(rows)[:count] if score >= 0]

    def _by_source(self, outputs: dict[str, Any], catalogue: Catalogue) -> list[Proposed]:
        counts: dict[str, int] = {}
        found: dict[str, list[tuple[int, str]]] = {}
        for place, (item, sources) in enumerate(self._proposals(outputs), 1):
            found.setdefault(sources[0], []).append((place, item))
            for source in sources:
                counts[source] = counts.get(source, 0) + 1
        order = [*catalogue.about["sources"], *counts]
        return [
            Proposed(
                source=source,
                count=count,
                films=[Film(**vars(catalogue.get(item))) for _, item in found.get(source, [])[:SHOWN]],
                places=[place for place, _ in found.get(source, [])[:SHOWN]],
            )
            for source, count in sorted(counts.items(), key=lambda pair: order.index(pair[0]))
        ]


@cache
def page_file(name: str) -> bytes:
    """A file of the page; the style sheet begins with the colours of all pages."""
    text = Path(__file__).with_name(f"_{name}").read_text("utf-8")
    return (f"{variables()}\nbody {{ font: 1rem/1.55 {FONT}; }}\n{text}" if name.endswith(".css") else text).encode()


def add_page(app: "FastAPI", run: Callable[[Callable[[float], Any]], Awaitable[Any]], page: Page) -> None:
    """Adds the page and what it asks for to the server.

    Args:
      app: the server.
      run: the result of `work(deadline)`, off the event loop.
      page: answers.
    """
    from fastapi import Response

    headers = {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    def add_file(path: str, name: str, kind: str) -> None:
        async def send() -> Response:
            return Response(page_file(name), media_type=kind, headers=headers)

        app.add_api_route(path, send, methods=["GET"], include_in_schema=False)

    add_file("/", "page.html", "text/html")
    for name, kind in FILES.items():
        add_file(f"/{name}", name, kind)
    errors = refusals(400, 404, 408, 422, 502, 503, 504)

    @app.get("/page/model", summary="What the page offers", responses=errors)
    async def about() -> About:
        return await run(lambda _: page.about())

    @app.get("/page/items", summary="Items by the words of their titles", responses=errors)
    async def items(q: Words = "") -> list[Film]:
        return await run(lambda _: page.find(q))

    @app.get("/page/users", summary="Known users by the beginning of their ids", responses=errors)
    async def users(q: Words = "") -> list[str]:
        return await run(lambda _: page.find_users(q))

    @app.post("/page/recommend", summary="Both stages' answers with titles", responses=errors | refusals(413))
    async def recommend(question: Question) -> Answer:
        return await run(lambda deadline: page.recommend(question, deadline))

    @app.get("/page/similar", summary="What is most like an item", responses=errors)
    async def similar(item: Id) -> list[Alike]:
        return await run(lambda deadline: page.similar(item, deadline))
