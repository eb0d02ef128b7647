"""`rlhf chat`: a dialogue with a version, or with two side by side, on our own engine."""

import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from data_contracts.errors import UserError
from flows.cli_options import HomeOption, paragraphs
from flows.cli_serve import chosen_policy

if TYPE_CHECKING:
    from annotation.model_server.conversation import Conversation
    from annotation.model_server.engine import Request

_HELP = "/system TEXT sets the system message, /reset begins anew, /quit ends; Ctrl-C stops a reply"


@paragraphs
def chat(
    message: Annotated[
        str | None, typer.Argument(help="One message; without it, a dialogue.")
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="V5, v5 or 5; sft: version 0; else the newest.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help="A second version beside it.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Any folder in Hugging Face layout instead.")
    ] = None,
    system: Annotated[str, typer.Option("--system", help="A system message.")] = "",
    temperature: Annotated[float, typer.Option("--temperature", help="0: greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p")] = 1.0,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Of a reply; else up to 256.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**62, help="The same replies again.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Talk to a version in the terminal, token by token.

    \b
    - `rlhf chat --version V5 --compare V1`
    - `rlhf chat "Write a verse about the moon." --temperature 0`
    - `rlhf chat < messages.txt`

    From a pipe every line is a message of one dialogue, and only replies go to standard output.
    When the context is full, the oldest turns are forgotten; a line on standard error says so.
    """
    from kernels.generation import Sampling

    if isinstance(sys.stdin, TextIOWrapper):
        # Bytes that are no UTF-8 come in under any locale, and `_check_encoding` tells of them.
        sys.stdin.reconfigure(errors="surrogateescape")
    _check_encoding(system, "The system message")
    try:
        Sampling(max_tokens or 1, temperature, top_p)
    except ValueError:
        raise UserError(
            f"--temperature {temperature} with --top-p {top_p} cannot be sampled",
            "Give a temperature of 0 or at least 0.001, and a top-p above 0 and at most 1",
        ) from None
    with ExitStack() as stack:
        first = (model, model.name) if model else chosen_policy(version, home)
        chosen = [first, *([chosen_policy(compare, home)] if compare else [])]
        conversations = [_opened(stack, folder, name, system) for folder, name in chosen]

        def ask(conversation: "Conversation", text: str, number: int) -> "Request":
            return conversation.ask(
                text,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=secrets.randbits(62) if seed is None else seed + number,
            )

        if message is not None or not sys.stdin.isatty():
            messages = _lines() if message is None else iter([("", message)])
            _answer_all(messages, conversations, ask)
        else:
            _talk(conversations, ask)


Ask = Callable[["Conversation", str, int], "Request"]


def _opened(stack: ExitStack, folder: Path, name: str, system: str) -> "Conversation":
    from annotation.model_server.conversation import Conversation
    from annotation.model_server.engine import Engine
    from stages.models.folders import load_policy_folder

    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}", "Give a model in Hugging Face layout")
    engine = stack.enter_context(closing(Engine(*load_policy_folder(folder))))
    return Conversation(engine, name, system)


def _lines() -> Iterator[tuple[str, str]]:
    """Messages of standard input, each with its place; a byte order mark is none of the text."""
    for number, line in enumerate(sys.stdin, start=1):
        text = (line.removeprefix("\ufeff") if number == 1 else line).strip()
        if text:
            yield f"Line {number}: ", text


def _answer_all(
    messages: Iterable[tuple[str, str]], conversations: "list[Conversation]", ask: Ask
) -> None:
    """Messages that nobody types: replies alone on standard output, each ended by a newline."""
    aside = Console(stderr=True, highlight=False)
    for number, (where, text) in enumerate(messages):
        try:
            _reply(text, number, conversations, ask, aside)
        except UserError as error:
            raise UserError(f"{where}{error.problem}", error.remedy) from None


def _check_encoding(text: str, what: str) -> None:
    """Raise UserError for bytes that Python took in although they are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{what} is not UTF-8", "Convert it, for instance with iconv") from None


def _talk(conversations: "list[Conversation]", ask: Ask) -> None:
    console = Console(highlight=False)
    names = " and ".join(conversation.name for conversation in conversations)
    console.print(f"{names}. {_HELP}", markup=False, style="dim")
    number = 0
    while (text := _typed(console)) is not None:
        if text.startswith("/"):
            if text == "/quit":
                return
            _command(text, conversations, console)
        elif text:
            try:
                _reply(text, number, conversations, ask, console)
            except UserError as error:  # the dialogue goes on
                console.print(str(error), markup=False, style="red")
            number += 1


def _typed(console: Console) -> str | None:
    """A line, or None at the end of input."""
    try:
        return console.input("[bold]> [/bold]").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None


def _command(text: str, conversations: "list[Conversation]", console: Console) -> None:
    name, _, rest = text.partition(" ")
    for conversation in conversations:
        if name == "/system":
            conversation.system = rest.strip()
        if name in ("/system", "/reset"):
            conversation.reset()
    told = {"/system": "System message set; the dialogue begins anew", "/reset": "A new dialogue"}
    console.print(told.get(name, _HELP), markup=False, style="dim")


def _reply(
    text: str, number: int, conversations: "list[Conversation]", ask: Ask, aside: Console
) -> None:
    """Both models write at once; side by side on a wide terminal, else one after the other."""
    _check_encoding(text, "The message")
    before = [conversation.num_forgotten for conversation in conversations]
    requests: list[Request] = []
    try:
        for conversation in conversations:
            requests.append(ask(conversation, text, number))
    except UserError:  # what one of them cannot read, none is asked
        for request in requests:
            request.is_abandoned = True
        raise
    for conversation, known in zip(conversations, before, strict=True):
        if conversation.num_forgotten > known:
            aside.print(
                f"{conversation.name} no longer sees the first {conversation.num_forgotten} turns",
                markup=False,
                style="dim",
            )
    if len(conversations) == 2 and sys.stdout.isatty():
        from flows.side_by_side import stream_columns

        stream_columns(conversations, requests)
        return
    for conversation, request in zip(conversations, requests, strict=True):
        if len(conversations) > 1:
            sys.stdout.write(f"{conversation.name}: ")
        _stream(conversation, request)


def _stream(conversation: "Conversation", request: "Request") -> None:
    """Write a reply as it comes; Ctrl-C ends the reply and not, in a terminal, the dialogue."""
    said = ""
    try:
        for piece in conversation.engine.pieces(request):
            said += piece
            sys.stdout.write(shown(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        request.is_abandoned = True
        if not sys.stdin.isatty():
            raise
    finally:
        conversation.answered(said)
        sys.stdout.write("\n")
        sys.stdout.flush()


def shown(text: str) -> str:
    """Text that a terminal does not obey: a model may write any control character."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)
