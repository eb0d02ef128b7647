"""The files from which transformers builds a tokenizer with the same ids as ours.

`tokenizer.json` says in the `tokenizers` library's terms what SentencePiece does: every run of
text gets a dummy space, merges go by score, unknown characters become bytes. The class named in
`tokenizer_config.json` is the generic fast one: transformers 5's own LlamaTokenizer rebuilds the
pipeline in Python and there loses the first of several leading spaces.

transformers looks for control strings in text, a chat template is text, and users may write
"</s>" or "[INST]". The template therefore puts U+FDD0, a code point that Unicode keeps out of
all text, into control strings of messages, and the normaliser takes it out again after control
strings have been looked for. So `apply_chat_template` gives the ids of `render_prompt` for any
message; with Llama's own vocabulary, whose separators are ordinary text, for any message without
a literal separator. Outside of templates pass `split_special_tokens=True` for text of unknown
origin.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as FastTokenizer

from stages.text.tokenizer import Tokenizer

GUARD = "\ufdd0"


def write_hf_files(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into `folder`."""
    fast = fast_tokenizer(tokenizer)
    fast.save(str(folder / "tokenizer.json"), pretty=False)
    config = json.dumps(_config(tokenizer), indent=2, ensure_ascii=True)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")


def fast_tokenizer(tokenizer: Tokenizer) -> FastTokenizer:
    """The same encoding as `tokenizer`, with bos in front, in the `tokenizers` library."""
    vocab = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    unknown = tokenizer.piece(tokenizer.unk_id)
    fast = FastTokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(tokenizer),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    controls = _control_strings(tokenizer)
    fast.normalizer = normalizers.Sequence(
        [normalizers.Replace(_guarded(text), text) for text in controls]
        + [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bos = tokenizer.piece(tokenizer.bos_id)
    fast.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.bos_id)],
    )
    fast.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in controls])
    return fast


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, those of the highest score first."""
    normal = {
        tokenizer.piece(i): i
        for i in range(tokenizer.vocab_size)
        if not (tokenizer.is_control(i) or tokenizer.is_byte(i) or i == tokenizer.unk_id)
    }
    by_priority = sorted(normal, key=lambda piece: (-tokenizer.score(normal[piece]), normal[piece]))
    merges: list[tuple[str, str]] = []
    for piece in by_priority:
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [(left, right) for left, right in halves if left in normal and right in normal]
    return merges


def _control_strings(tokenizer: Tokenizer) -> list[str]:
    ids = [i for i in range(tokenizer.vocab_size) if tokenizer.is_control(i)]
    return [tokenizer.piece(i) for i in sorted({tokenizer.unk_id, *ids})]


def _guarded(text: str) -> str:
    return text[0] + GUARD + text[1:]


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.piece(tokenizer.bos_id),
        "eos_token": tokenizer.piece(tokenizer.eos_id),
        "unk_token": tokenizer.piece(tokenizer.unk_id),
        "pad_token": tokenizer.piece(tokenizer.pad_id),
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1_000_000_000,
        "padding_side": "left",
        "chat_template": chat_template(tokenizer),
    }


def chat_template(tokenizer: Tokenizer) -> str:
    """A Jinja template whose result tokenises to what `stages.text.dialogue` renders."""
    guards = "".join(
        f" | replace('{text}', '{_guarded(text)}')" for text in _control_strings(tokenizer)
    )
    if tokenizer.separators is None:
        system = "'<<SYS>>\\n' + {} + '\\n<</SYS>>\\n\\n'"
        begin, end = "[INST] ", " [/INST]"
        answer = "(' ' if message['content'] else '') + "
    else:
        system = "'<<SYS>>' + {} + '<</SYS>>'"
        begin, end, answer = "[INST]", "[/INST]", ""
    return _TEMPLATE.format(
        guards=guards,
        system=system.format("guard(messages[0]['content'] | trim)"),
        begin=begin,
        end=end,
        answer=answer,
    )


_TEMPLATE = """\
{{%- macro guard(text) -%}}{{{{ text{guards} }}}}{{%- endmacro -%}}
{{%- set system = '' -%}}
{{%- set turns = messages -%}}
{{%- if messages[0]['role'] == 'system' -%}}
{{%- set turns = messages[1:] -%}}
{{%- if messages[0]['content'] | trim -%}}
{{%- set system = {system} -%}}
{{%- endif -%}}
{{%- endif -%}}
{{%- for message in turns -%}}
{{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}}
{{{{- raise_exception('Messages must be an optional system message, then user and assistant') -}}}}
{{%- elif message['role'] == 'user' -%}}
{{{{- bos_token + '{begin}' + (system if loop.first else '')
    + guard(message['content'] | trim) + '{end}' -}}}}
{{%- else -%}}
{{{{- {answer}guard(message['content']) + eos_token -}}}}
{{%- endif -%}}
{{%- endfor -%}}"""
