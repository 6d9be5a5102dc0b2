"""The HTTP interface: what may be asked, what is answered, and the page."""

import asyncio
import hmac
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool

from data.readers import name_of
from serving.batcher import Batcher, QueueFull
from serving.config import ServeConfig
from serving.gate import HEAD_SECONDS, Gate, Protocol
from serving.served import Search, Served, load_served
from utils.errors import InputError
from utils.files import whole_characters

PAGE = Environment(loader=FileSystemLoader(Path(__file__).parent)).get_template("page.html")
# The page carries its style and script, and may ask this server only.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; frame-ancestors 'none'"
)
FROM_ELSEWHERE = {"forwarded", "x-forwarded-for", "x-real-ip", "via", "origin"}  # headers of proxies and web pages
CONNECTIONS = 512  # open at a time; more get 503
END_SECONDS = 8  # that requests have to finish when the server ends

Name = Annotated[str, Field(min_length=1, max_length=500), BeforeValidator(name_of, json_schema_input_type=str | float)]
Limit = Annotated[int, Query(ge=1, le=100, description="How many are listed.")]
Words = Annotated[str, Query(max_length=200)]


class Strict(BaseModel):
    """A part of a request; what it does not know is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Item(BaseModel):
    """An item, and its score where it is recommended by the model."""

    item: str
    text: str
    semantic_id: list[int] = Field(description="Its codes, one per level, from 0; the coarsest is the first.")
    sharing: list[int] = Field(description="How many items begin with its first 1, 2, ... codes, itself among them.")
    score: float | None = Field(None, description="Mean log-probability per level.")


class Answer(BaseModel):
    """What is recommended to one history."""

    user: str | None
    source: Literal["model", "most_popular"]
    unknown: list[str] = Field(description="Names of the history that the catalogue lacks; they are skipped.")
    notes: list[str] = Field(description="The same and other things to know, as sentences.")
    items: list[Item] = Field(description="Best first; fewer than k where no more are left.")


class Answers(BaseModel):
    """The answers to the histories of a request, in their order."""

    results: list[Answer]
    model: str = Field(description="The hash of the weights that recommended, its first 12 digits.")


class Items(BaseModel):
    """Items of the catalogue."""

    items: list[Item]
    unknown: list[str] = Field([], description="Names of a user's history that the catalogue lacks.")


class Users(BaseModel):
    """Users of the dataset."""

    users: list[str]


class Health(BaseModel):
    """It answers."""

    status: Literal["ok"] = "ok"
    waiting: int = Field(description="Histories in the queue.")


class About(BaseModel):
    """The model that is served."""

    name: str
    dataset: str
    tokenizer: dict[str, str | int | None]
    network: str
    parameters: int
    level_sizes: list[int]
    items: int
    users: int = Field(description="Users that may be asked for by name.")
    metrics: dict[str, dict[str, float]]
    sha256: dict[str, str]
    limits: dict[str, int | float]


def request_models(config: ServeConfig) -> type[Strict]:
    """Return the body of POST /recommend, with the limits of the settings."""

    class History(Strict):
        """A history of items, newest last, or that of a user of the dataset."""

        items: list[Name] | None = Field(None, max_length=config.max_items, description="Items, newest last.")
        user: Name | None = Field(None, description="A user, whose history is taken where there are no items.")

    class Recommend(History):
        """One history (items or user), or many (histories)."""

        histories: list[History] | None = Field(None, min_length=1, max_length=config.max_histories)
        k: int = Field(min(10, config.max_k), ge=1, le=config.max_k, description="Items for each history.")
        exclude_seen: bool = Field(True, description="Leave out the items of the history.")
        num_beams: int = Field(min(50, config.max_beams), ge=1, le=config.max_beams, description="At least k are used.")

        @model_validator(mode="after")
        def check(self) -> "Recommend":
            """Refuse a request that names no history, or one beside histories."""
            one = self.items is not None or self.user is not None
            if one == (self.histories is not None):
                raise ValueError('give either "histories", or "items" ([] for somebody new) or "user"')
            if any(history.items is None and history.user is None for history in self.histories or []):
                raise ValueError('every one of the histories has "items" ([] for somebody new) or "user"')
            return self

    return Recommend


def make_app(config: ServeConfig, served: Served) -> FastAPI:
    """Make the application that serves a model; its lifespan ends when what waits is computed."""
    batcher = Batcher(Search.__call__, config.max_wait_ms / 1000, config.max_batch, config.max_queue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close, timeout=1.0)

    app = FastAPI(title="MTGRec", description="Recommendations of a trained model.", lifespan=lifespan)
    app.add_middleware(Gate, hosts=config.hosts, max_body_bytes=config.max_body_bytes)
    app.state.served = served
    add_errors(app)
    add_recommend(app, config, batcher)
    add_lookups(app)
    add_model(app, config, batcher)
    return app


def make_server(config: ServeConfig, served: Served) -> uvicorn.Server:
    """Make the server of the application; `run` takes the sockets to listen at."""
    return uvicorn.Server(
        uvicorn.Config(
            make_app(config, served),
            **{"loop": "asyncio", "http": Protocol, "ws": "none", "log_level": "error", "access_log": False},
            **{"proxy_headers": False, "server_header": False},  # who asks is who connects
            **{"limit_concurrency": CONNECTIONS, "backlog": CONNECTIONS},
            timeout_keep_alive=HEAD_SECONDS,
            timeout_graceful_shutdown=END_SECONDS,
        )
    )


def add_errors(app: FastAPI) -> None:
    """Answer every refusal with one sentence in `detail`."""

    @app.exception_handler(InputError)
    def refuse(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": whole_characters(str(error))}, 422)

    @app.exception_handler(RequestValidationError)
    def refuse_invalid(_: Request, invalid: RequestValidationError) -> JSONResponse:
        error = invalid.errors()[0]
        where = ".".join(str(part) for part in error["loc"] if part not in ("body", "query"))
        said = f"{where[:80]}: {error['msg']}" if where else error["msg"]
        return JSONResponse({"detail": whole_characters(said.replace("Value error, ", ""))}, 422)

    @app.exception_handler(Exception)
    def fail(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "the server failed at this request; its log says why"}, 500)


def add_recommend(app: FastAPI, config: ServeConfig, batcher: Batcher) -> None:
    """Add POST /recommend."""
    Recommend = request_models(config)

    @app.post("/recommend")
    async def recommend(wanted: Recommend) -> Answers:
        """Recommend items to one history or many; histories that come together are computed together."""
        served = app.state.served  # a reload changes the next request's
        search = Search(served, wanted.k, wanted.num_beams, wanted.exclude_seen)
        histories = [(history.user, history.items) for history in wanted.histories or [wanted]]
        requests = await run_in_threadpool(lambda: [served.request(*history) for history in histories])
        try:
            futures = batcher.submit(search, requests)
        except QueueFull:
            raise HTTPException(503, "too many histories wait already; ask again later", {"Retry-After": "1"}) from None
        found = await asyncio.gather(*map(asyncio.wrap_future, futures))
        results = await run_in_threadpool(search.answers, requests, found)
        return Answers(results=results, model=served.about["sha256"]["weights"][:12])


def add_lookups(app: FastAPI) -> None:
    """Add what the page and people find names with."""

    @app.get("/items")
    def items(query: Words = "", limit: Limit = 20) -> Items:
        """Find items that have all words of the query in their names and texts, the most popular first."""
        served = app.state.served
        return Items(items=map(served.item, served.find(query, limit)))

    @app.get("/users")
    def users(query: Words = "", limit: Limit = 20) -> Users:
        """Find users of the dataset that have the query in their names."""
        return Users(users=app.state.served.find_users(query, limit))

    @app.get("/history")
    def history(user: Annotated[str, Query(max_length=500)]) -> Items:
        """Return the history of a user of the dataset, newest last."""
        served = app.state.served
        found = served.request(user, None)
        return Items(items=map(served.item, found.history.tolist()), unknown=found.unknown)

    page = PAGE.render()

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def show() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY, "Referrer-Policy": "no-referrer"})


def add_model(app: FastAPI, config: ServeConfig, batcher: Batcher) -> None:
    """Add what operators need: health, the model, and another one in its place."""
    limits = {name: value for name, value in vars(config).items() if name.startswith("max_")}
    reloading = threading.Lock()

    @app.get("/health")
    def health() -> Health:
        """Say that the server answers, and how many histories wait."""
        return Health(waiting=len(batcher))

    @app.get("/model")
    def model() -> About:
        """Describe the model that is served."""
        return About(**app.state.served.about, limits=limits)

    @app.post("/reload")
    def reload(request: Request) -> About:
        """Load the model anew from where --model leads now; requests that are here finish on the old one."""
        if not may_reload(request, config.token):
            how = "the token of --token" if config.token else "HTTP/1.1 from the same machine, without a proxy"
            raise HTTPException(403, f"POST /reload needs {how}")
        if not reloading.acquire(blocking=False):
            raise HTTPException(409, "a reload is going on; ask again when it is over")
        try:
            app.state.served = load_served(config)
        except Exception as error:  # a broken folder may raise anything
            logging.getLogger("uvicorn.error").error("reload failed", exc_info=not isinstance(error, InputError))
            raise HTTPException(409, whole_characters(f"the old model stays in place: {error}")) from None
        finally:
            reloading.release()
        return model()


def may_reload(request: Request, token: str) -> bool:
    """Return whether a request has the token, or, where there is none, seems to come straight from this machine.

    A proxy may say nothing of itself. Many such speak HTTP/1.0, which hardly any other program does today.
    """
    if token:
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())
    local = request.client is not None and ip_address(request.client.host).is_loopback
    return local and request.scope["http_version"] != "1.0" and not FROM_ELSEWHERE & set(request.headers)
