"""Dialogues under an instruction, held turn by turn with a model (§3.3).

The instruction stands before every user message, or in the first turn only; what the model answers
becomes part of the dialogue that its next answer follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kernels.generation import Sampling
from kernels.model import CausalLM
from stages.models.batches import seed_from
from stages.models.sampling import Sample, sample_responses
from stages.runtime.stage import WorkDir
from stages.text.dialogue import render_prompt, split_turns
from stages.text.tokenizer import Tokenizer

Reach = Literal["every_turn", "first_turn"]
"""Which user messages an instruction is attached to."""


@dataclass(frozen=True)
class Dialogue:
    """A user's messages, and the answers to the first of them.

    `answers` is one shorter than `questions` at most where the dialogue came with its answers.
    """

    id: str
    questions: tuple[str, ...]
    answers: tuple[str, ...] = ()
    system: str | None = None
    """The dialogue's own system message."""
    instruction: str = ""

    @property
    def is_answered(self) -> bool:
        """Whether no question is open."""
        return len(self.answers) == len(self.questions)

    def messages(self, reach: Reach) -> list[dict[str, Any]]:
        """Up to and with the first open question; the whole dialogue when it is answered."""
        rows: list[dict[str, Any]] = []
        if self.system is not None:
            rows.append({"role": "system", "content": self.system})
        asked = self.questions[: len(self.answers) + 1]
        for turn, question in enumerate(asked):
            is_attached = bool(self.instruction) and (reach == "every_turn" or turn == 0)
            content = f"{self.instruction} {question}" if is_attached else question
            rows.append({"role": "user", "content": content})
            if turn < len(self.answers):
                rows.append({"role": "assistant", "content": self.answers[turn]})
        return rows

    def shortened(self) -> "Dialogue":
        """Without its questions that have no answer."""
        return replace(self, questions=self.questions[: len(self.answers)])


@dataclass
class Talks:
    """Dialogues that were held, in the order they were given, and what cut some of them short."""

    dialogues: list[Dialogue]
    """With as many turns as they got."""
    num_without_room: int = 0
    """Ended where the context held no more."""
    num_cut_off: int = 0
    """Ended before an answer that was cut off or said nothing."""


def joined_dialogues(
    rows: Sequence[dict[str, Any]], num_questions: Sequence[int]
) -> list[Dialogue]:
    """Dialogues from rows of the prompts table, in their order.

    A row that is a dialogue by itself stays one, with its answers. Single questions under the same
    system message, or under none, are laid end to end: the i-th dialogue that is begun with them
    takes `num_questions[i]`; what is left over at the end is not used.
    """
    dialogues: list[Dialogue] = []
    begun: dict[str | None, _Begun] = {}
    lengths = iter(num_questions)
    for row in rows:
        system, turns = split_turns(row["messages"])
        texts = [turn["content"] for turn in turns]
        if len(texts) > 1:
            given = tuple(texts[0::2]), tuple(texts[1::2])
            dialogues.append(Dialogue(row["prompt_id"], *given, system))
            continue
        if system not in begun:
            begun[system] = _Begun(row["prompt_id"], next(lengths, None))
        dialogue = begun[system]
        dialogue.questions.append(texts[0])
        if len(dialogue.questions) == dialogue.wanted:
            dialogues.append(Dialogue(dialogue.id, tuple(dialogue.questions), (), system))
            del begun[system]
    return dialogues


@dataclass
class _Begun:
    """A dialogue that is being joined of single questions."""

    id: str
    wanted: int | None
    questions: list[str] = field(default_factory=list)


def hold(
    dialogues: Sequence[Dialogue],
    reach: Reach,
    model: CausalLM,
    tokenizer: Tokenizer,
    sampling: Sampling,
    seed: int,
    work: WorkDir,
    batch_size: int,
    label: str = "answer",
) -> Talks:
    """Let the model answer every open question, all dialogues side by side, one turn after another.

    A dialogue ends early where its next question leaves no room for an answer, or where the answer
    was cut off or empty. Earlier answers are read as their text is encoded, as in a chat. Every
    rank returns the same.
    """
    talks = Talks(list(dialogues))
    room = model.config.max_seq_len - sampling.max_new_tokens
    turn = 0
    while waiting := [i for i, d in enumerate(talks.dialogues) if not d.is_answered]:
        prompts = {i: render_prompt(talks.dialogues[i].messages(reach), tokenizer) for i in waiting}
        fitting = [i for i in waiting if len(prompts[i]) <= room]
        samples = sample_responses(
            model,
            [prompts[i] for i in fitting],
            sampling,
            tokenizer,
            seed_from(seed, turn),
            work,
            batch_size,
            label,
        )
        answers = dict(zip(fitting, samples, strict=True))
        for i in waiting:
            talks.dialogues[i] = _continued(talks.dialogues[i], answers.get(i))
        talks.num_without_room += len(waiting) - len(fitting)
        talks.num_cut_off += sum(not sample.is_whole for sample in samples)
        turn += 1
    return talks


def _continued(dialogue: Dialogue, sample: Sample | None) -> Dialogue:
    if sample is None or not sample.is_whole:
        return dialogue.shortened()
    return replace(dialogue, answers=(*dialogue.answers, sample.text))
