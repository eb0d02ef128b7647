"""A dialogue that outgrows the context, with a real (tiny) model."""

from collections.abc import Iterator

import pytest
from annotation_model import tiny_model, tiny_tokenizer

from annotation.model_server.conversation import SMALLEST_REPLY_TOKENS, Conversation
from annotation.model_server.engine import Engine
from data_contracts.errors import UserError
from kernels.generation import Sampling, generate
from stages.text.dialogue import render_prompt


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    tokenizer = tiny_tokenizer()
    engine = Engine(tiny_model(tokenizer, max_seq_len=96), tokenizer)
    yield engine
    engine.close()


def say(conversation: Conversation, text: str, *, max_tokens: int = 12, seed: int = 0) -> str:
    request = conversation.ask(text, max_tokens=max_tokens, temperature=0, top_p=1, seed=seed)
    reply = "".join(conversation.engine.pieces(request))
    conversation.answered(reply)
    return reply


def expected(engine: Engine, messages: list[dict[str, str]], length: int) -> str:
    prompt = render_prompt(messages, engine.tokenizer)
    out = generate(
        engine.model, [prompt], Sampling(length, 0.0), eos_id=engine.tokenizer.eos_id, seed=0
    )
    tokens = out.responses[0]
    return engine.text(tokens[:-1] if out.finished[0] else tokens)


def test_every_turn_sees_the_ones_before(engine: Engine):
    conversation = Conversation(engine, "v1", "be brief")
    first = say(conversation, "the cat")
    second = say(conversation, "the moon")
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "the moon"},
    ]
    assert second == expected(engine, turns, 12)
    conversation.reset()
    assert say(conversation, "the cat") == first


def test_the_oldest_turns_leave_and_the_system_message_stays(engine: Engine):
    conversation = Conversation(engine, "v1", "be brief")
    replies = [say(conversation, f"the cat sat on mat {i}") for i in range(6)]
    assert 0 < conversation.num_forgotten < 6
    kept = 5 - conversation.num_forgotten
    turns = [{"role": "system", "content": "be brief"}]
    for i in range(5 - kept, 5):
        turns += [
            {"role": "user", "content": f"the cat sat on mat {i}"},
            {"role": "assistant", "content": replies[i]},
        ]
    turns.append({"role": "user", "content": "the cat sat on mat 5"})
    assert replies[5] == expected(engine, turns, 12)
    longer = [*turns[:1], {"role": "user", "content": f"the cat sat on mat {4 - kept}"},
              {"role": "assistant", "content": replies[4 - kept]}, *turns[1:]]  # fmt: skip
    room = engine.model.config.max_seq_len - len(render_prompt(longer, engine.tokenizer))
    assert room < 12  # no more is forgotten than must be


def test_a_long_message_gets_what_room_there_is(engine: Engine):
    conversation = Conversation(engine, "v1")
    text = "the cat sat on the mat " * 4
    used = len(render_prompt([{"role": "user", "content": text}], engine.tokenizer))
    room = engine.model.config.max_seq_len - used
    assert SMALLEST_REPLY_TOKENS <= room < 90
    request = conversation.ask(text, max_tokens=90, temperature=0, top_p=1, seed=0)
    assert request.sampling.max_new_tokens == room
    assert len(list(request)) <= room


def test_a_message_without_room_is_refused_and_the_dialogue_goes_on(engine: Engine):
    conversation = Conversation(engine, "v1")
    say(conversation, "the cat")
    with pytest.raises(UserError, match="reads and writes 96 in all"):
        conversation.ask("cat " * 200, max_tokens=None, temperature=0, top_p=1, seed=0)
    turns = len(conversation._turns)
    say(conversation, "the moon")
    assert len(conversation._turns) == turns + 2
