"""Context distillation: what is asked, what the Safety RM reads, and what is kept."""

import pytest
import torch
from small_store import prompt, small_store, small_tokenizer, table
from torch import Tensor

from data_contracts.artifacts import ArtifactRef
from data_contracts.parquet import read_table
from data_contracts.tables import CONTRACTS
from stages import rejection_sampling, safety_distillation
from stages.models.batches import Example
from stages.models.normalisation import Normalisation
from stages.models.rewards import GATE_THRESHOLD, RewardModels
from stages.models.sampling import Sample
from stages.runtime.engine import EngineSettings
from stages.safety_distillation import Config, documents, prefixed, preprompt_of
from stages.text.dialogue import render_demonstration, render_prompt, render_response

ANY = ArtifactRef(digest="0" * 64, kind="checkpoint")
BOMB = prompt("bomb", "The garden", domain="safety", category="illicit")
RUDE = prompt("rude", "The river", domain="safety", category="odd")


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def config(**changes):
    return Config.model_validate(
        {
            "version": 4,
            "prompts": ANY,
            "policy": ANY,
            "safety_rm": ANY,
            "max_new_tokens": 16,
            "preprompts": ["be safe", "be kind"],
            "templates": {"illicit": "say no"},
            **changes,
        }
    )


def test_a_template_for_its_category_and_generic_preprompts_in_turn_for_the_rest():
    targeted = config()
    assert preprompt_of(targeted, BOMB, 0) == ("say no", True)
    assert preprompt_of(targeted, RUDE, 0) == ("be safe", False)
    assert preprompt_of(targeted, RUDE, 1) == ("be kind", False)
    assert preprompt_of(targeted, {"category": None}, 2) == ("be safe", False)
    assert preprompt_of(config(method="untargeted"), BOMB, 1) == ("be kind", False)


def test_a_preprompt_is_the_system_message_and_comes_before_one_that_is_there():
    user = {"role": "user", "content": "u"}
    assert prefixed([user], "be safe") == [{"role": "system", "content": "be safe"}, user]
    system = {"role": "system", "content": "be brief"}
    assert prefixed([system, user], "be safe") == [
        {"role": "system", "content": "be safe\nbe brief"},
        user,
    ]


def test_the_safety_rm_reads_the_prompt_without_preprompt_and_the_ids_that_are_learnt(tokenizer):
    ids = [tokenizer.encode(letter)[-1] for letter in "has"]
    whole = Sample([*ids, tokenizer.eos_id], "has", True)
    cut = Sample(ids, "has", False)
    asked = render_prompt(BOMB["messages"], tokenizer)
    read = documents(config(), [BOMB, BOMB], [whole, cut], tokenizer)
    assert read == [asked + render_response("has", tokenizer), asked + ids]
    assert read[0][len(asked) :] != whole.tokens  # its text has another spelling


class Judge:
    """A Safety RM that reads its score from the answer's last token before the EOS."""

    def __init__(self, scores):
        self.scores = scores

    def __call__(self, scorer, sequences, rank) -> Tensor:
        return torch.tensor([self.scores[tuple(sequence[-2:-1])] for sequence in sequences])


@pytest.fixture
def answers(monkeypatch, tokenizer):
    """Script the answers to three prompts and their scores; everything else is the stage."""

    def script(originals, distilled, scores):
        asked = []

        def sample(model, prompts, sampling, tokenizer, *rest, **options):
            texts = originals if not asked else distilled
            asked.append(prompts)
            return [
                Sample([*tokenizer.encode(t.rstrip("…")), tokenizer.eos_id], t, "…" not in t)
                for t in texts
            ]

        by_token = {(tokenizer.encode(text)[-1],): score for text, score in scores.items()}
        monkeypatch.setattr(safety_distillation, "sample_responses", sample)
        monkeypatch.setattr(safety_distillation, "score_sequences", Judge(by_token))
        return asked

    return script


def three(domain="safety"):
    return [prompt(f"p{i}", f"The garden has {i} walls.", domain=domain) for i in range(3)]


def run(tmp_path, **changes):
    held_out = {**three()[0], "prompt_id": "t", "split": "test"}
    prompts = [*three(), prompt("kind", "The river"), held_out]
    work, refs = small_store(tmp_path, prompts)
    own = {name: refs[name] for name in ("prompts", "policy", "safety_rm")}
    output = safety_distillation.run(config(**own, **changes), work)
    rows = {
        role: read_table(output.artifacts[role][0], CONTRACTS[contract]).to_pylist()
        for role, contract in (("demonstrations", "demonstrations"), ("red_team", "prompts"))
    }
    return output, rows, work, refs


def test_kept_only_where_the_safety_rm_prefers_it(tmp_path, answers, tokenizer):
    scores = {"1": -3.0, "2": 0.0, "3": 1.0}
    asked = answers(["1", "2", "3"], ["2", "2", "1"], scores)
    output, rows, *_ = run(tmp_path)
    assert len(asked) == 2
    assert all(len(behind) > len(plain) for plain, behind in zip(*asked, strict=True))
    (row,) = rows["demonstrations"]  # equal is not preferred, lower is not
    assert row["messages"][-1] == {"role": "assistant", "content": "2", "loss": True}
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"]  # no preprompt
    rendered = render_demonstration(row["messages"], tokenizer)
    answer = render_response("2", tokenizer)
    assert rendered.tokens[-len(answer) :] == answer
    assert rendered.loss_mask == [False] * (len(rendered.tokens) - len(answer)) + [True] * len(
        answer
    )
    assert output.metrics["kept_share"] == pytest.approx(1 / 3)


def test_prompts_whose_first_answer_falls_below_the_threshold_broke_the_model(tmp_path, answers):
    # sigmoid: 0.0474, 0.1680, 0.1192
    answers(["1", "2", "3"], ["1", "2", "3"], {"1": -3.0, "2": -1.6, "3": -2.0})
    output, rows, *_ = run(tmp_path, gate_threshold=0.15)
    assert len(rows["red_team"]) == 2
    assert all(row["domain"] == "safety" and row["split"] == "train" for row in rows["red_team"])
    assert rows["demonstrations"] == []
    assert output.metrics["broken_share"] == pytest.approx(2 / 3)


def test_the_threshold_is_one_for_normalised_scores_as_it_is_for_the_gate(tmp_path):
    """Safe by the raw scores, and unsafe on the level that the model's normalisation puts right."""
    work, refs = small_store(tmp_path, three(), safety=Normalisation(1.0, -20.0))
    own = {name: refs[name] for name in ("prompts", "policy", "safety_rm")}
    output = safety_distillation.run(config(**own), work)
    assert output.metrics["broken_share"] == 1
    judges = RewardModels.load(
        work, refs["helpfulness_rm"], refs["safety_rm"], GATE_THRESHOLD, EngineSettings()
    )
    scores = judges.score([[1, 2]], [False], work)
    assert scores.gated.tolist() == [True]


def test_an_answer_that_was_cut_off_is_not_kept(tmp_path, answers):
    answers(["1", "1", "1"], ["2…", "2", "2"], {"1": 0.0, "2": 1.0})
    output, rows, *_ = run(tmp_path)
    assert len(rows["demonstrations"]) == 2
    assert output.metrics["num_cut_off"] == 1


def test_nothing_empty_as_a_preprompt():
    with pytest.raises(ValueError, match="preprompt or a template is empty"):
        config(preprompts=[" "])


def test_rejection_sampling_learns_both_stages_rows_and_samples_what_broke_the_model(
    tmp_path, monkeypatch, tokenizer
):
    """Two extra rows with their own loss flags, and a red-team prompt beside the chosen one."""
    helpful = [prompt(f"h{i}", f"The river has {i} walls.") for i in range(2)]
    work, refs = small_store(tmp_path, [*helpful, *three()])
    turns = [("user", "a river", False), ("assistant", "old", False)]
    turns += [("user", "walls", False), ("assistant", "30", True)]
    last_only = [{"role": r, "content": c, "loss": loss} for r, c, loss in turns]
    both = [{**m, "loss": m["role"] == "assistant"} for m in last_only]
    extra = [
        table(work, tmp_path / name, "demonstrations", [row])
        for name, row in (
            ("gatt", {"demonstration_id": "g", "source": "ghost", "messages": last_only}),
            ("safe", {"demonstration_id": "s", "source": "safe", "messages": both}),
        )
    ]
    sft = [{"demonstration_id": "d", "source": "own", "messages": both}]
    learned: list[Example] = []
    monkeypatch.setattr(
        rejection_sampling, "finetune", lambda model, examples, *rest: learned.extend(examples)
    )
    monkeypatch.setattr(rejection_sampling, "save_policy", lambda *rest: ("", ""))
    own = {name: refs[name] for name in ("prompts", "policy", "helpfulness_rm", "safety_rm")}
    output = rejection_sampling.run(
        rejection_sampling.Config.model_validate(
            {
                **own,
                "version": 1,
                "start_from": refs["policy"],
                "demonstrations": table(work, tmp_path / "sft", "demonstrations", sft),
                "extra_demonstrations": extra,
                "red_team": [table(work, tmp_path / "red", "prompts", three()[:2])],
                "num_red_team_prompts": 1,
                "num_prompts": {"helpfulness": 2},
                "num_samples": 2,
                "max_new_tokens": 16,
                "finetuning": {"sequence_length": 64},
            }
        ),
        work,
    )
    scored = read_table(output.artifacts["scored_samples"][0], CONTRACTS["scored_samples"])
    sampled = set(scored.column("prompt_id").to_pylist())
    assert {"h0", "h1"} < sampled
    assert len(sampled - {"h0", "h1"}) == 1
    assert sampled - {"h0", "h1"} < {"p0", "p1"}
    assert output.metrics["num_extra"] == 2
    masks = {e.id: e for e in learned}
    answers = [len(render_response(text, tokenizer)) for text in ("old", "30")]
    assert sum(masks["g"].loss_mask) == answers[1]
    assert sum(masks["s"].loss_mask) == sum(answers)
    assert masks["g"].tokens == masks["s"].tokens
