"""An annotator writes a prompt, and our own model server answers."""

from collections.abc import Iterator

import pytest
from annotation_model import served, tiny_model, tiny_tokenizer
from annotation_world import browser, comparison, publish_rows
from sqlalchemy import select

from annotation.model_server.app import create_model_app
from annotation.model_server.engine import Engine
from annotation.settings import AnnotationSettings, LiveModel
from annotation.storage.schema import Item
from annotation.web.app import create_app
from annotation.web.visitors import Service


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
    assert page.right.strip() in ann.client.get(path).text.replace("&#39;", "'")
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


def test_without_live_models_nothing_is_written(service, app):
    ann = browser(service, app, "ann")
    assert ann.post("/write/helpfulness", {"prompt": "x"}).status_code == 422
    assert "Write a prompt" not in ann.client.get("/").text
