import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from httpx2 import Response
from safetensors.torch import load_file, save_file

import export
from inference.model_folder import export_model
from serving.config import ServeConfig
from serving.served import Served, load_served, near_in, sharing
from utils.errors import InputError

SECONDS = 10  # more than anything takes here


def post(client: TestClient, **body: object) -> dict:
    response = client.post("/recommend", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def names(answer: dict) -> list[str]:
    return [item["item"] for item in answer["items"]]


def test_one_history_gets_what_the_model_recommends(client: TestClient, served: Served):
    answer = post(client, items=["I0003", "I0007"], k=4, num_beams=20)
    (result,) = answer["results"]
    items, scores = served.model.recommend([["I0003", "I0007"]], k=4, num_beams=20)
    assert names(result) == items[0]
    assert [item["score"] for item in result["items"]] == pytest.approx(scores[0], abs=1e-5)
    assert {name: result[name] for name in ("user", "source", "unknown", "notes")} == {
        "user": None,
        "source": "model",
        "unknown": [],
        "notes": [],
    }
    first, catalogue = result["items"][0], served.model.catalogue
    number = catalogue.ids[first["item"]]
    assert first["text"] == catalogue.texts[number]
    assert first["semantic_id"] == catalogue.codes()[number - 1].tolist()
    assert first["sharing"] == [16, 2, 2, 1]
    assert answer["model"] == served.about["sha256"]["weights"][:12]
    assert len(post(client, items=[])["results"][0]["items"]) == 10


def test_many_histories_each_get_their_answer(client: TestClient, served: Served):
    histories = [{"items": ["I0003"]}, {"items": []}, {"user": "U00002"}, {"items": ["I003", "I0003", "x"]}]
    histories += [{"items": ["I003", "I003"], "user": "guest"}]
    one, empty, user, partly, unknown = post(client, histories=histories, k=3)["results"]
    popular = [served.model.catalogue.names[item] for item in served.by_popularity[:3]]
    near = "skipped, not in the catalogue: 'I003' (did you mean I0073, I0063, I0053?)"
    instead = "so the most popular items are recommended"
    assert names(partly) == names(one)
    assert (partly["source"], partly["unknown"], partly["notes"]) == ("model", ["I003", "x"], [f"{near} and 1 more"])
    assert (empty["source"], names(empty)) == ("most_popular", popular)
    assert empty["notes"] == [f"the history is empty, {instead}"]
    assert [item["score"] for item in empty["items"]] == [None] * 3
    assert (unknown["user"], unknown["source"], names(unknown)) == ("guest", "most_popular", popular)
    assert unknown["notes"] == [near, f"no item of the history is known, {instead}"]
    (request,) = served.users.requests(["U00002"])
    history = [served.model.catalogue.names[item] for item in request.history]
    assert (user["user"], names(user)) == ("U00002", served.model.recommend([history], k=3)[0][0])


def test_near_names_are_searched_once_a_request_and_among_few_names(
    client: TestClient, served: Served, monkeypatch: pytest.MonkeyPatch
):
    searched = []

    def near(name: str, names: dict[str, int]) -> str:
        searched.append((name, len(names)))
        return " (near)"

    monkeypatch.setattr("serving.served.near_matches", near)
    monkeypatch.setattr(served, "near_item", near_in(served.model.catalogue.ids))
    histories = [{"items": ["I0003"]}] + [{"items": [name, "z"]} for name in ("x", "y", "x")]
    notes = [result["notes"][0] for result in post(client, histories=histories, k=80)["results"]]
    said = "skipped, not in the catalogue: "
    assert notes[1:] == [f"{said}'x' (near) and 1 more", f"{said}'y' and 1 more", f"{said}'x' (near) and 1 more"]
    assert searched == [("x", 80)]
    for length, names in ((10, 1000), (80, 15)):  # which one search may go through, and one more it may not
        for number, expected in ((names, names), (names + 1, 0)):
            near_in({f"{name:0{length}d}": name for name in range(number)})("x")
            assert searched[-1] == ("x", expected)


def test_seen_items_and_items_that_are_left(client: TestClient, served: Served):
    everything = served.model.catalogue.names[1:]
    (few,) = post(client, items=everything[2:], k=5)["results"]
    assert set(names(few)) == set(everything[:2])
    assert few["notes"] == ["only 2 items are left to recommend"]
    (seen,) = post(client, items=everything[2:], k=5, exclude_seen=False)["results"]
    assert len(seen["items"]) == 5


def test_numbers_are_the_names_that_data_prepare_makes(client: TestClient):
    (result,) = post(client, items=[12, " I0003\n", 1.5], k=1)["results"]
    assert result["unknown"] == ["12", "1.5"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, 'give either "histories", or "items" ([] for somebody new) or "user"'),
        ({"items": [], "histories": [{"items": []}]}, 'give either "histories", or "items"'),
        ({"histories": [{"items": []}, {}]}, 'every one of the histories has "items"'),
        ({"histories": [{"items": []}] * 5}, "histories: List should have at most 4 items"),
        ({"items": ["I0001"] * 7}, "items: List should have at most 6 items"),
        ({"items": [None]}, "items.0: String should have at least 1 character"),
        ({"items": ["\ud800"]}, "items.0: String should have at least 1 character"),
        ({"items": ["a" * 501]}, "items.0: String should have at most 500 characters"),
        ({"items": [], "k": 51}, "k: Input should be less than or equal to 50"),
        ({"items": [], "k": 0}, "k: Input should be greater than or equal to 1"),
        ({"items": [], "k": True}, "k: Input should be a valid integer"),
        ({"items": [], "num_beams": 31}, "num_beams: Input should be less than or equal to 30"),
        ({"items": [], "itmes": []}, "itmes: Extra inputs are not permitted"),
        ({"items": [], "é" * 200: 1}, "Extra inputs are not permitted"),
        ({"items": [], "\ud800" * 200: 1}, "Input should be a valid string"),
        ({"user": "U0002"}, "there is no user 'U0002' (did you mean U00092, U00082, U00072?)"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_a_wrong_request_is_refused_with_a_sentence(client_of: Callable[..., TestClient], body: object, said: str):
    client = client_of(max_histories=4, max_items=6, max_k=50, max_beams=30)
    response = client.post("/recommend", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert said in response.json()["detail"]
    assert len(response.json()["detail"]) < 250


@pytest.mark.parametrize(
    "content", ["{", "[" * 50_000, '{"items": [], "k": NaN}', b'{"user": "\xff"}', '{"k": ' + "1" * 5000]
)
def test_what_is_no_json_is_refused(client: TestClient, content: str | bytes):
    response = client.post("/recommend", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.json()["detail"]


def test_a_body_that_is_too_large_is_refused_however_it_is_sent(client_of: Callable[..., TestClient]):
    client, taken = client_of(max_body_bytes=1000), []

    def chunks():
        for number in range(100):
            taken.append(number)
            yield b" " * 300

    for content in (b" " * 1001, chunks()):
        response = client.post("/recommend", content=content)
        assert (response.status_code, response.headers["connection"]) == (413, "close")
        assert response.json()["detail"] == "the body has more than 1,000 bytes; send fewer histories at a time"
    whole = json.dumps({"items": []}).encode()
    response = client.post("/recommend", content=iter([whole, b" " * (1000 - len(whole))]))
    assert response.status_code == 422  # not JSON by its type, but read


def test_a_connection_that_brings_no_whole_head_is_closed(port_of: Callable[..., int], monkeypatch: pytest.MonkeyPatch):
    """Silent, in the middle of the first head, and of the second; one more byte gives no more time."""
    monkeypatch.setattr("serving.app.HEAD_SECONDS", 1.0)
    port, line, started = port_of(), b"GET /health HTTP/1.1\r\n", time.monotonic()
    given = [(b"", b""), (line, b"H"), (line + b"Host: localhost\r\n\r\nG", b"E")]
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), SECONDS)) for _ in given]
        for part, pause in ((0, 0.3), (1, 0)):
            for connection, parts in zip(connections, given, strict=True):
                connection.sendall(parts[part])
            time.sleep(pause)
        received = [connection.makefile("rb").read() for connection in connections]
    assert 1 < time.monotonic() - started < SECONDS
    assert [answer.partition(b" OK")[0] for answer in received] == [b"", b"", b"HTTP/1.1 200"]


def test_a_body_may_take_longer_than_a_head(port_of: Callable[..., int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serving.app.HEAD_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", port_of())) as slow:
        slow.settimeout(SECONDS)
        slow.sendall(b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        time.sleep(0.4)
        slow.sendall(b"        ")
        assert slow.recv(4096).startswith(b"HTTP/1.1 422")


def test_only_the_names_of_this_machine_are_answered(client_of: Callable[..., TestClient]):
    def status(client: TestClient, host: str) -> int:
        return client.get("/health", headers={"Host": host}).status_code

    local = client_of()
    assert [status(local, host) for host in ("127.0.0.1", "localhost:8000", "[::1]:8000", "LOCALHOST")] == [200] * 4
    assert [status(local, host) for host in ("evil.example", "127.0.0.1.evil.example", "[", "")] == [400] * 4
    named = client_of(allowed_hosts=["Shop.example"], host="0.0.0.0")
    assert [status(named, host) for host in ("shop.example", "127.0.0.1", "evil.example")] == [200, 200, 400]
    assert status(client_of(host="0.0.0.0"), "any.example") == 200


class Held:
    """A model whose recommending waits, and which keeps how many histories it was asked for at a time."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch):
        self.began, self.go_on, self.sizes = threading.Event(), threading.Event(), []
        compute = served.model.recommend_ids

        def held(histories: list, *arguments: object) -> object:
            self.sizes.append(len(histories))
            self.began.set()
            assert self.go_on.wait(SECONDS)
            return compute(histories, *arguments)

        monkeypatch.setattr(served.model, "recommend_ids", held)

    def start(self, client: TestClient, **body: object) -> tuple[threading.Thread, list[Response]]:
        """Send a request from a thread; return it and the list that gets its answer."""
        found: list[Response] = []
        thread = threading.Thread(target=lambda: found.append(client.post("/recommend", json=body)))
        thread.start()
        return thread, found


@pytest.fixture
def held(served: Served, monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(served, monkeypatch)


def wait_for(client: TestClient, waiting: int) -> None:
    """Wait until so many histories are in the queue."""
    deadline = time.monotonic() + SECONDS
    while client.get("/health").json() != {"status": "ok", "waiting": waiting}:
        assert time.monotonic() < deadline


def test_requests_that_come_together_are_computed_together(client: TestClient, held: Held, served: Served):
    histories = [["I0001"], ["I0002", "I0003"], ["I0004"], ["I0005"]]
    asked = [held.start(client, items=histories[0], k=2)]
    assert held.began.wait(SECONDS)
    asked += [held.start(client, items=history, k=k) for history, k in zip(histories[1:], (2, 2, 3), strict=True)]
    wait_for(client, 3)
    held.go_on.set()
    for thread, _ in asked:
        thread.join(SECONDS)
    assert sorted(held.sizes) == [1, 1, 2]
    for history, k, (_, (response,)) in zip(histories, (2, 2, 2, 3), asked, strict=True):
        assert names(response.json()["results"][0]) == served.model.recommend([history], k=k)[0][0]


def test_a_full_queue_is_said(client_of: Callable[..., TestClient], held: Held):
    client = client_of(max_queue=2, max_histories=2)
    first = held.start(client, items=["I0001"])
    assert held.began.wait(SECONDS)
    second = held.start(client, items=["I0002"])
    wait_for(client, 1)
    response = client.post("/recommend", json={"histories": [{"items": []}] * 2})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["detail"] == "too many histories wait already; ask again later"
    held.go_on.set()
    for thread, found in (first, second):
        thread.join(SECONDS)
        assert found[0].status_code == 200


def test_an_error_of_the_model_is_a_500_and_the_next_request_is_answered(
    client: TestClient, served: Served, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(served.model, "recommend_ids", lambda *_: 1 / 0)
        response = client.post("/recommend", json={"items": ["I0001"]})
    assert (response.status_code, response.json()["detail"]) == (
        500,
        "the server failed at this request; its log says why",
    )
    assert post(client, items=["I0001"])["results"][0]["source"] == "model"


@pytest.fixture
def winner(run: Path, tmp_path: Path) -> Path:
    """Return a winner's file that leads to an exported model of other item names than the run's."""
    export_model(run, tmp_path / "new")
    items = (tmp_path / "new" / "items.jsonl").read_text().replace('"item": "I', '"item": "J')
    (tmp_path / "new" / "items.jsonl").write_text(items)
    (tmp_path / "new" / "sha256.json").unlink()
    shutil.copytree(tmp_path / "new", tmp_path / "broken")
    weights = (tmp_path / "broken" / "model.safetensors").read_bytes()
    (tmp_path / "broken" / "model.safetensors").write_bytes(weights[:-4])
    return lead(tmp_path / "some.winner.json", "new")


def lead(file: Path, run: str) -> Path:
    file.write_text(json.dumps({"winner": {"run": run}}))
    return file


def test_a_reload_loses_no_request(client_of: Callable[..., TestClient], winner: Path, held: Held, served: Served):
    client = client_of(model=str(winner), users=False)
    before = held.start(client, items=["I0003"], k=2)
    assert held.began.wait(SECONDS)
    waits = held.start(client, items=["I0004"], k=2)
    wait_for(client, 1)
    response = client.post("/reload")
    assert (response.status_code, response.json()["name"]) == (200, "new")
    assert response.json() == client.get("/model").json()
    after = held.start(client, items=["J0004"], k=2)
    wait_for(client, 2)
    held.go_on.set()
    for thread, _ in (before, waits, after):
        thread.join(SECONDS)
    expected = {name: served.model.recommend([[name]], k=2)[0][0] for name in ("I0003", "I0004")}
    assert names(before[1][0].json()["results"][0]) == expected["I0003"]
    assert names(waits[1][0].json()["results"][0]) == expected["I0004"]
    assert names(after[1][0].json()["results"][0]) == [name.replace("I", "J") for name in expected["I0004"]]
    assert held.sizes[:2] == [1, 1]  # the old model computed the first two, and not the third


def test_a_broken_folder_leaves_the_old_model(client_of: Callable[..., TestClient], winner: Path):
    client = client_of(model=str(winner))
    before = client.get("/model").json()
    for run, said in (("broken", "no whole file of weights"), ("nowhere", "nowhere is neither a model folder")):
        lead(winner, run)
        response = client.post("/reload")
        assert response.status_code == 409
        assert re.match(rf"the old model stays in place: .*{said}", response.json()["detail"])
    winner.write_bytes(b"\xff")
    assert client.post("/reload").status_code == 409
    assert client.get("/model").json() == before
    assert post(client, items=["I0001"])["results"][0]["source"] == "model"


def test_weights_that_are_no_numbers_are_refused(winner: Path):
    folder = winner.parent / "new"
    weights = {
        name: torch.full_like(tensor, np.nan) for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match="new: the model's scores are no numbers"):
        load_served(ServeConfig(str(winner)))


def test_who_may_reload(client_of: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, served: Served):
    monkeypatch.setattr("serving.app.load_served", lambda config: served)
    here, elsewhere = client_of(), client_of(caller="192.0.2.7")
    assert here.post("/reload").status_code == 200
    assert client_of(caller="::1").post("/reload").status_code == 200
    refused = elsewhere.post("/reload")
    assert refused.status_code == 403
    assert refused.json()["detail"] == "POST /reload needs HTTP/1.1 from the same machine, without a proxy"
    for name in ("X-Forwarded-For", "Forwarded", "Via", "Origin"):  # a proxy or a web page on this machine
        assert here.post("/reload", headers={name: "127.0.0.1"}).status_code == 403
    guarded = [client_of(caller=caller, token="s3cret") for caller in ("127.0.0.1", "192.0.2.7")]
    for client in guarded:
        assert client.post("/reload").json()["detail"] == "POST /reload needs the token of --token"
        for given in ("Bearer s3cre", "Bearer ", "s3cret", "é"):
            assert client.post("/reload", headers={"Authorization": given.encode()}).status_code == 403
        assert client.post("/reload", headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_a_proxy_that_does_not_name_itself_may_not_reload(port_of: Callable[..., int]):
    """nginx's plain proxy_pass sends HTTP/1.0, and no header of its own."""
    ports = port_of(), port_of(token="s3cret")

    def status(port: int, version: str) -> bytes:
        head = f"POST /reload HTTP/{version}\r\nHost: 127.0.0.1:8000\r\nAuthorization: Bearer s3cret\r\n"
        with socket.create_connection(("127.0.0.1", port), SECONDS) as proxy:
            proxy.sendall(f"{head}Connection: close\r\n\r\n".encode())
            return proxy.makefile("rb").read().split()[1]

    assert [[status(port, version) for version in ("1.0", "1.1")] for port in ports] == [[b"403", b"200"], [b"200"] * 2]


def test_one_reload_at_a_time(client: TestClient, monkeypatch: pytest.MonkeyPatch, served: Served):
    began, go_on, found = threading.Event(), threading.Event(), []

    def load(config: ServeConfig) -> Served:
        began.set()
        assert go_on.wait(SECONDS)
        return served

    monkeypatch.setattr("serving.app.load_served", load)
    thread = threading.Thread(target=lambda: found.append(client.post("/reload").status_code))
    thread.start()
    assert began.wait(SECONDS)
    response = client.post("/reload")
    assert (response.status_code, response.json()["detail"]) == (409, "a reload is going on; ask again when it is over")
    go_on.set()
    thread.join(SECONDS)
    assert found == [200]


def test_items_are_found_by_all_words_the_most_popular_first(client: TestClient, served: Served):
    found = client.get("/items", params={"query": "  COFFEE steel", "limit": 3}).json()["items"]
    texts = served.model.catalogue.texts
    expected = [
        item for item in served.by_popularity if {"coffee", "steel"} <= set(re.findall(r"\w+", texts[item].lower()))
    ]
    assert names({"items": found}) == [served.model.catalogue.names[item] for item in expected[:3]]
    assert len(found) == 3
    assert found[0].keys() == {"item", "text", "semantic_id", "sharing", "score"}
    assert names(client.get("/items", params={"query": "i0017"}).json()) == ["I0017"]
    assert client.get("/items", params={"query": "nothing so"}).json()["items"] == []
    everything = client.get("/items", params={"limit": 100}).json()["items"]
    assert names({"items": everything}) == [served.model.catalogue.names[item] for item in served.by_popularity]
    assert client.get("/items", params={"limit": 101}).status_code == 422


def test_users_and_their_histories(client: TestClient, served: Served):
    assert client.get("/users", params={"query": "u0001", "limit": 2}).json() == {"users": ["U00010", "U00011"]}
    (request,) = served.users.requests(["U00010"])
    history = client.get("/history", params={"user": "U00010"}).json()
    assert names(history) == [served.model.catalogue.names[item] for item in request.history]
    response = client.get("/history", params={"user": "nobody"})
    assert (response.status_code, response.json()["detail"]) == (
        422,
        "there is no user 'nobody'; send the items instead",
    )


def test_a_model_without_its_dataset_has_no_users(client_of: Callable[..., TestClient], run: Path, tmp_path: Path):
    export_model(run, tmp_path / "out")
    alone = load_served(ServeConfig(str(tmp_path / "out"), data_dir="/nowhere"))
    hidden = load_served(ServeConfig(str(run), users=False))
    for model in (alone, hidden):
        client = client_of(model)
        assert client.get("/model").json()["users"] == 0
        assert client.get("/users").json() == {"users": []}
        for response in (client.get("/history?user=U00001"), client.post("/recommend", json={"user": "U00001"})):
            assert response.status_code == 422
            assert response.json()["detail"].startswith("there are no users here, since the dataset is not at hand")


def test_what_the_model_is(client_of: Callable[..., TestClient], served: Served):
    about = client_of(max_k=7).get("/model").json()
    assert {name: about[name] for name in ("name", "dataset", "items", "users", "level_sizes", "network")} == {
        "name": "random",
        "dataset": "Sample",
        "items": 80,
        "users": 100,
        "level_sizes": [8, 8, 8, 8],
        "network": "t5",
    }
    assert about["tokenizer"] == {"prefix": "rqvae/toy_8,8,8,8", "epoch": 2}
    assert about["metrics"] == {"valid": {"ndcg@10": 0.2}, "test": {"ndcg@10": 0.3}}
    assert about["sha256"]["semantic_ids"] == served.model.catalogue.table.sha256[0]
    assert about["limits"]["max_k"] == 7
    assert "/" not in about["dataset"] + about["name"]


def test_the_page_carries_everything_and_openapi_the_limits(client_of: Callable[..., TestClient]):
    client = client_of(max_k=7)
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert set(re.findall(r"https?://[^\"' ]*", page.text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(?:script|link|img)[^>]* (?:src|href)=(?!\"data:)", page.text)
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert (schemas["Recommend"]["properties"]["k"]["maximum"], schemas["Recommend"]["properties"]["k"]["default"]) == (
        7,
        7,
    )


@pytest.mark.usefixtures("hub")
def test_a_model_from_a_hub_has_its_name_there(run: Path):
    export.main([f"--run={run}", "--push_to_hub=ann/shop"])
    assert load_served(ServeConfig("hf:ann/shop")).about["name"] == "hf:ann/shop"


def test_sharing_counts_equal_beginnings():
    codes = np.array([[1, 2, 1], [1, 2, 2], [1, 3, 1], [0, 2, 1]])
    assert sharing(codes).tolist() == [[3, 2, 1], [3, 2, 1], [3, 1, 1], [1, 1, 1]]


def test_wrong_settings_are_named():
    config = ServeConfig(port=70_000, max_k=0, num_threads=0, max_queue=10, max_histories=11, max_wait_ms=float("nan"))
    assert config.problems() == [
        "name a run or model folder with --model",
        "max_wait_ms=nan must be at least 0",
        "num_threads=0 must be at least 1",
        "max_k=0 must be at least 1",
        "port=70000 must be at most 65535",
        "max_queue=10 has no room for a request of max_histories=11",
    ]
    assert ServeConfig("run", token="a\nb").problems() == [
        "token must be of ASCII characters, which a header can carry"
    ]
    assert ServeConfig("run").problems() == []
