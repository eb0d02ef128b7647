"""The model server: the engine's own responses, streamed and batched, for an OpenAI client."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from annotation_model import tiny_model, tiny_tokenizer
from fastapi.testclient import TestClient

from annotation.model_server import engine as engine_module
from annotation.model_server.app import create_model_app
from annotation.model_server.engine import Engine
from kernels.generation import Sampling, generate
from kernels.model import CausalLM
from stages.text.dialogue import render_prompt
from stages.text.tokenizer import Tokenizer

QUESTIONS = ["the cat", "a mat?", "what is the moon and where is the cat"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer) -> CausalLM:
    return tiny_model(tokenizer)


@pytest.fixture(scope="module")
def engine(model, tokenizer):
    engine = Engine(model, tokenizer)
    yield engine
    engine.close()


@pytest.fixture
def client(engine) -> TestClient:
    return TestClient(create_model_app(engine, "rlhf-v2"))


def asked(question: str, **settings) -> dict:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": 12, **settings}


def answer(client: TestClient, question: str, **settings) -> str:
    reply = client.post("/v1/chat/completions", json=asked(question, **settings))
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def test_the_greedy_answer_is_the_generation_engines(client, engine):
    prompts = [
        render_prompt([{"role": "user", "content": question}], engine.tokenizer)
        for question in QUESTIONS
    ]
    expected = generate(
        engine.model,
        prompts,
        Sampling(12, temperature=0),
        eos_id=engine.tokenizer.eos_id,
        seed=0,
    )
    bodies = [
        tokens[:-1] if finished else tokens
        for tokens, finished in zip(expected.responses, expected.finished, strict=True)
    ]
    found = [answer(client, question, temperature=0) for question in QUESTIONS]
    assert found == [engine.text(body) for body in bodies]


def test_a_seed_fixes_the_answer_whoever_else_is_asking(client):
    alone = answer(client, QUESTIONS[0], seed=5)

    def ask(i: int) -> str:
        if i == 3:
            return answer(client, QUESTIONS[0], seed=5)
        return answer(client, QUESTIONS[i % 3], seed=i, max_tokens=3 + i, temperature=i / 4)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8)))[3] == alone


def test_answers_without_a_seed_differ(client):
    assert len({answer(client, QUESTIONS[0], max_tokens=30) for _ in range(4)}) > 1


def test_a_stream_is_the_same_text_in_pieces(client):
    whole = answer(client, QUESTIONS[2], seed=9, max_tokens=40)
    body = asked(QUESTIONS[2], seed=9, max_tokens=40, stream=True)
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == whole
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert sum(bool(piece) for piece in pieces) > 1


def test_a_top_p_of_next_to_nothing_is_greedy(client):
    greedy = answer(client, QUESTIONS[1], temperature=0)
    assert answer(client, QUESTIONS[1], top_p=5e-324) == greedy


def test_usage_counts_tokens(client, engine):
    reply = client.post("/v1/chat/completions", json=asked(QUESTIONS[0], temperature=0)).json()
    prompt = render_prompt([{"role": "user", "content": QUESTIONS[0]}], engine.tokenizer)
    usage = reply["usage"]
    assert usage["prompt_tokens"] == len(prompt)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert reply["model"] == "rlhf-v2"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"messages": []}, 422),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400),
        ({"max_tokens": 4096}, 400),
        ({"temperature": -1}, 422),
        ({"temperature": 1e-30}, 422),
        ({"stop": ["x"]}, 422),
        ({"n": 2}, 422),
    ],
)
def test_what_it_cannot_do_is_refused(client, change, status):
    body = asked(QUESTIONS[0]) | change
    assert client.post("/v1/chat/completions", json=body).status_code == status


@pytest.mark.parametrize(
    "body",
    [
        '{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        '{"messages": [1e999]}',
        '{"messages": [], "\\ud800": "\\ud800"}',
        '{"messages": [{"role": "user", "content": "\\ud800"}]}',
        "[",
    ],
)
def test_what_cannot_even_be_repeated_is_refused_with_the_field(client, body):
    reply = client.post(
        "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 422
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_the_model_has_a_name(client):
    assert client.get("/v1/models").json()["data"][0]["id"] == "rlhf-v2"


def test_an_error_of_the_model_ends_its_request_and_the_engine_goes_on(
    model, tokenizer, monkeypatch
):
    engine = Engine(model, tokenizer)
    messages = [{"role": "user", "content": "x"}]
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "prefill", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(engine.submit(messages, Sampling(4), seed=1))
    assert list(engine.submit(messages, Sampling(4), seed=1))
    engine.close()
