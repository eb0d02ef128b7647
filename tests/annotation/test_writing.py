"""An annotator writes a prompt, and our own model server answers."""

import asyncio
import html
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from annotation_model import served, tiny_model, tiny_tokenizer
from annotation_world import Browser, add_user, browser, comparison, comparisons, publish_rows
from pydantic import ValidationError
from sqlalchemy import select

from annotation.model_server.app import create_model_app
from annotation.model_server.engine import Engine
from annotation.settings import AnnotationSettings, LiveModel
from annotation.storage.schema import Item
from annotation.web.app import create_app
from annotation.web.visitors import Service

NUM_WRITERS = 45
"""More than the 40 threads of FastAPI's pool."""


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    tokenizer = tiny_tokenizer()
    engine = Engine(tiny_model(tokenizer), tokenizer)
    with served(create_model_app(engine, "rlhf-v2")) as url:
        yield f"{url}/v1"
    engine.close()


def live_app(database, clock, url: str):
    models = tuple(
        LiveModel(url=url, model=name, temperatures=temperatures)
        for name, temperatures in (("v2", (0.7, 1.0)), ("v1", (1.3,)))
    )
    settings = AnnotationSettings(live_models=models, max_new_tokens=16)
    service = Service(database, settings, clock)
    return service, create_app(service)


def test_a_written_prompt_is_answered_twice_and_labelled(database, clock, model_url):
    service, app = live_app(database, clock, model_url)
    publish_rows(database, [comparison("of-the-batch")])
    ann, bob = browser(service, app, "ann"), browser(service, app, "bob")
    reply = ann.post("/write/helpfulness", {"prompt": "the cat?"})
    assert (reply.status_code, reply.headers["location"]) == (303, "/tasks/helpfulness")
    page = ann.open()
    assert page.messages == [{"role": "user", "content": "the cat?"}]
    assert page.left != page.right
    assert bob.open().messages != page.messages  # it is with the one who wrote it
    with database.reading() as session:
        item = session.scalars(select(Item).where(Item.comparison_id.like("live-%"))).one()
    assert {item.model_a, item.model_b} == {"v1", "v2"}
    by_model = {item.model_a: item.temperature_a, item.model_b: item.temperature_b}
    assert by_model["v1"] == 1.3
    assert by_model["v2"] in (0.7, 1.0)


def test_a_dialogue_goes_on_with_the_chosen_response(database, clock, model_url):
    service, app = live_app(database, clock, model_url)
    publish_rows(database, [comparison("of-the-batch")])
    ann = browser(service, app, "ann")
    ann.post("/write/helpfulness", {"prompt": "the cat?"})
    page = ann.open()
    reply = ann.label(page, "right-better")
    path = reply.headers["hx-redirect"]
    assert path.startswith("/write/helpfulness?after=")
    assert page.right.strip() in html.unescape(ann.client.get(path).text)
    after = path.partition("after=")[2]
    ann.post("/write/helpfulness", {"prompt": "and the mat?", "after": after})
    assert ann.open().messages == [
        {"role": "user", "content": "the cat?"},
        {"role": "assistant", "content": page.right},
        {"role": "user", "content": "and the mat?"},
    ]
    stranger = browser(service, app, "bob")
    assert stranger.client.get(path).status_code == 404  # it is nobody else's


def test_a_model_that_does_not_answer_leaves_the_prompt_in_the_form(database, clock):
    service, app = live_app(database, clock, "http://127.0.0.1:9/v1")
    publish_rows(database, [comparison("of-the-batch")])
    ann = browser(service, app, "ann")
    reply = ann.post("/write/helpfulness", {"prompt": "a long thought"})
    assert reply.status_code == 502
    assert "does not answer" in reply.text
    assert "a long thought</textarea>" in reply.text


def test_a_batch_that_has_closed_leaves_the_prompt_in_the_form(database, clock, model_url):
    _, app = live_app(database, clock, model_url)
    add_user(database, "ann")
    ann = Browser(app, "ann")
    ann.log_in()
    reply = ann.post("/write/helpfulness", {"prompt": "a long thought"})
    assert reply.status_code == 422
    assert "No batch is open" in reply.text
    assert "a long thought</textarea>" in reply.text


def test_the_lines_of_a_prompt_end_as_in_any_text(database, clock, model_url):
    service, app = live_app(database, clock, model_url)
    publish_rows(database, [comparison("of-the-batch")])
    ann = browser(service, app, "ann")
    ann.post("/write/helpfulness", {"prompt": "the cat\r\nand the mat"})
    assert ann.open().messages == [{"role": "user", "content": "the cat\nand the mat"}]


def answering(content: Callable[[], str]):
    """A chat server; `content` gives the JSON of each message's content."""

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        body = f'{{"choices": [{{"message": {{"content": {content()}}}}}]}}'.encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


@pytest.mark.parametrize(
    ("contents", "status"),
    [(["", "x", "same", "same", "one", "other"], 303), (["same"] * 6, 422), ([" ", "x"] * 3, 422)],
    ids=["third", "same", "empty"],
)
def test_where_there_is_nothing_to_compare_the_models_answer_again(
    database, clock, contents, status
):
    left = [json.dumps(content) for content in contents]
    with served(answering(lambda: left.pop(0))) as url:
        service, pages = live_app(database, clock, url)
        publish_rows(database, [comparison("of-the-batch")])
        ann = browser(service, pages, "ann")
        reply = ann.post("/write/helpfulness", {"prompt": "a long thought"})
    assert reply.status_code == status
    assert not left
    if status == 303:
        page = ann.open()
        assert {page.left, page.right} == {"one", "other"}
    else:
        assert "there is nothing to compare" in reply.text


@pytest.mark.parametrize(
    "content",
    ['"half \\ud83d of a pair"', "null", "7", '["parts"]'],
    ids=["half", "null", "7", "parts"],
)
def test_whatever_a_model_answers_is_no_server_error(database, clock, content):
    with served(answering(lambda: content)) as url:
        service, pages = live_app(database, clock, url)
        publish_rows(database, [comparison("of-the-batch")])
        ann = browser(service, pages, "ann")
        reply = ann.post("/write/helpfulness", {"prompt": "a long thought"})
    assert reply.status_code in (422, 502)
    assert "a long thought</textarea>" in reply.text


def test_models_that_take_long_do_not_stop_the_labels(database, clock):
    """More people wait for a response than the service has threads."""
    waiting, answer = [], threading.Event()

    async def slow(scope, receive, send):
        assert scope["type"] == "http"
        waiting.append(1)
        while not answer.is_set():
            await asyncio.sleep(0.02)
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with served(slow) as model_url:
        service, app = live_app(database, clock, f"{model_url}/v1")
        publish_rows(database, comparisons(2))
        ann = browser(service, app, "ann")
        form = {"csrf": ann.csrf, "prompt": "a long thought"}
        with served(app) as url, ThreadPoolExecutor(NUM_WRITERS) as pool:
            settings = {"base_url": url, "cookies": dict(ann.client.cookies), "timeout": 60}
            with httpx.Client(**settings, trust_env=False) as client:
                path = "/write/helpfulness"
                asked = [pool.submit(client.post, path, data=form) for _ in range(NUM_WRITERS)]
                try:
                    while len(waiting) < 2 * NUM_WRITERS:
                        time.sleep(0.02)
                    assert client.get("/tasks/helpfulness").status_code == 200
                finally:
                    answer.set()
                assert {future.result().status_code for future in asked} == {502}


def test_without_live_models_nothing_is_written(service, app):
    ann = browser(service, app, "ann")
    assert ann.post("/write/helpfulness", {"prompt": "x"}).status_code == 422
    assert "Write a prompt" not in ann.client.get("/").text


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "http://", "http://host:port/v1", "ftp://x/v1"])
def test_an_address_of_a_model_that_is_none_is_refused_at_the_start(url):
    with pytest.raises(ValidationError, match="url"):
        LiveModel(url=url, model="v1")
