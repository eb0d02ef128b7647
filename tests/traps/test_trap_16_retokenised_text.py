"""Trap 16: sampled text is decoded and tokenised again before it is trained on.

When it bites: one text has many spellings in tokens; the ids that are trained on are not those
that were drawn, so the ratio is that of another response and the EOS may be gone.

Seen to fail with each of these planted in the product:
- responses decoded and encoded on their way from the generator, to the policy, to the reward
  models or to the table of rollouts;
- the EOS stripped with the text's ending, or added to responses that were cut off;
- ids above the vocabulary's ordinary pieces, or control pieces, dropped;
- the prompt rendered anew from its messages with the response's text;
- the best of K learned from its text.
"""

import shutil

import pytest
from trap_models import EOS
from trap_ppo import bench
from trap_store import published

from data_contracts.errors import UserError
from data_contracts.parquet import read_table
from data_contracts.tables import CONTRACTS
from stages import distillation, rejection_sampling
from stages.models.batches import Example
from stages.models.best_of_k import best_examples
from stages.models.finetuning import finetune
from stages.models.rollouts import keep_rollouts
from stages.text.dialogue import render_prompt
from stages.text.tokenizer import Tokenizer
from stages.text.training import train_bpe


class Listener:
    """A model that remembers the documents it is shown."""

    def __init__(self, model):
        self.model = model
        self.documents = []

    def __call__(self, tokens, documents, *rest, **options):
        self.documents += [piece.tolist() for piece in tokens.split(documents.lengths)]
        return self.model(tokens, documents, *rest, **options)

    def __getattr__(self, name):
        return getattr(self.model, name)


def another_spelling(responses, tokenizer):
    """How many of them their own text would not give back."""
    return sum(
        tokenizer.encode(tokenizer.decode(ids)) != [i for i in ids if i != EOS] for ids in responses
    )


def test_every_model_of_ppo_is_shown_the_ids_that_were_drawn(tmp_path, tokenizer, drawn):
    ready = bench(tmp_path, tokenizer)
    models = ready.models
    models.policy, models.value, models.reference = (
        Listener(model) for model in (models.policy, models.value, models.reference)
    )
    helpfulness, safety = Listener(models.rewards.helpfulness), Listener(models.rewards.safety)
    models.rewards = type(models.rewards)(helpfulness, safety, 0.15)
    rollouts = ready.roll_out()
    (responses,) = drawn
    assert another_spelling(responses, tokenizer) > 8
    assert [t.response for t in rollouts.trajectories] == responses
    ready.update(rollouts)
    whole = [p + r for p, r in zip(ready.prompts.tokens, responses, strict=True)]
    fed = [tokens[:-1] for tokens in whole]  # the last token predicts nothing
    assert models.policy.documents == fed * 2  # measured, then trained on
    assert models.value.documents == fed * 2
    assert models.reference.documents == fed
    assert sorted(helpfulness.documents) == sorted(safety.documents) == sorted(whole)


def test_rollouts_keep_the_ids_that_were_drawn(tmp_path, tokenizer, drawn):
    ready = bench(tmp_path, tokenizer)
    rollouts = ready.roll_out()
    keep_rollouts(ready.work, 0, ready.prompts.rows, rollouts)
    table = read_table(ready.work.checkpoints / "rollouts", CONTRACTS["rollouts"])
    assert table.column("response_tokens").to_pylist() == drawn[0]
    assert table.column("prompt_tokens").to_pylist() == ready.prompts.tokens


def test_the_best_of_k_is_learned_as_it_was_drawn(tmp_path, tokenizer, drawn, monkeypatch):
    """The whole stage, twice: the second time the first one's best answers are in the bag."""
    learned: list[Example] = []

    def listening(model, examples, *rest):
        learned[:] = examples
        return finetune(model, examples, *rest)

    monkeypatch.setattr(rejection_sampling, "finetune", listening)
    work, refs = published(tmp_path, tokenizer, writes_text=True)
    for version in (1, 2):
        output = rejection_sampling.run(stage_config(refs, version), work)
        shutil.rmtree(work.checkpoints)  # as for every stage that has come to its end
        folder, kind = output.artifacts["scored_samples"]
        rows = read_table(folder, CONTRACTS["scored_samples"]).to_pylist()
        refs["earlier_samples"] = [work.store.publish(folder, kind)]
        best = [row for row in rows if row["best"]]
        responses = [response for batch in drawn for response in batch]
        assert another_spelling([row["response_tokens"] for row in best], tokenizer) > 2
        expected = [render_prompt(r["messages"], tokenizer) + r["response_tokens"] for r in best]
        assert [example.tokens for example in learned[: len(best)]] == expected
        assert version == 1 or len(learned) > len(best)
        for example in learned:
            answer = example.tokens[example.loss_mask.index(True) :]
            assert answer in responses
            assert answer.count(EOS) == 1


def test_a_student_learns_what_the_larger_model_drew(tmp_path, tokenizer, drawn, monkeypatch):
    learned: list[Example] = []

    def listening(model, examples, *rest):
        learned[:] = examples
        return finetune(model, examples, *rest)

    monkeypatch.setattr(distillation, "finetune", listening)
    work, refs = published(tmp_path, tokenizer, writes_text=True)
    folder, kind = rejection_sampling.run(stage_config(refs, 1), work).artifacts["scored_samples"]
    samples = work.store.publish(folder, kind)
    rows = [r for r in work.table(samples, "scored_samples").to_pylist() if r["best"]]
    small = {"sequence_length": 64, "global_batch_size": 4, "num_epochs": 1}
    distillation.run(
        distillation.Config(init_from=refs["other"], samples=(samples,), **small), work
    )
    prompts = [render_prompt(r["messages"], tokenizer) for r in rows]
    drawn_ids = [r["response_tokens"] for r in rows]
    assert another_spelling(drawn_ids, tokenizer) > 0
    assert [e.tokens for e in learned] == [p + r for p, r in zip(prompts, drawn_ids, strict=True)]


def test_where_all_samples_are_unsafe_there_is_nothing_to_learn(tmp_path, tokenizer):
    """These reward models are drawn at random; the threshold says that nothing is safe."""
    work, refs = published(tmp_path, tokenizer, writes_text=True)
    strict = {"gate_threshold": 0.999999, "drop_all_unsafe": True}
    config = stage_config(refs, 1).model_copy(update=strict)
    with pytest.raises(UserError, match=r"None of 6 prompts has an answer to learn"):
        rejection_sampling.run(config, work)


def test_a_student_with_another_tokenizer_learns_the_text(tokenizer):
    other = Tokenizer.from_bytes(train_bpe(["A sentence about rivers.\n"] * 9, 290))
    tokens = [*tokenizer.encode("The garden"), EOS]
    row = {
        "sample_id": "s",
        "messages": [{"role": "user", "content": "The river"}],
        "response": "The garden",
        "response_tokens": tokens,
    }
    (same,) = best_examples([row], tokenizer, 64)
    (another,) = best_examples([row], other, 64)
    assert same.tokens[-len(tokens) :] == tokens
    answer = another.tokens[another.loss_mask.index(True) :]
    assert (other.decode(answer[:-1]), answer[-1]) == ("The garden", other.eos_id)


def stage_config(refs, version):
    own = {name: refs[name] for name in rejection_sampling.Config.model_fields if name in refs}
    return rejection_sampling.Config.model_validate(
        {
            **own,
            "version": version,
            "start_from": refs["policy"],
            "num_samples": 4,
            "drop_all_unsafe": False,
            "max_new_tokens": 8,
            "finetuning": {"sequence_length": 64, "global_batch_size": 4, "num_epochs": 1},
        }
    )
