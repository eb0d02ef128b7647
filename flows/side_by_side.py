"""Two replies in two columns, while both are being written."""

import threading

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from annotation.model_server.conversation import Conversation
from annotation.model_server.engine import Request
from flows.cli_chat import shown

_REFRESH_SECONDS = 0.1


def stream_columns(conversations: list[Conversation], requests: list[Request]) -> None:
    """Show both replies until both have ended; Ctrl-C ends them where they are."""
    replies = [""] * len(conversations)

    def follow(index: int) -> None:
        for piece in conversations[index].engine.pieces(requests[index]):
            replies[index] += piece

    threads = [
        threading.Thread(target=follow, args=(i,), daemon=True) for i in range(len(conversations))
    ]
    for thread in threads:
        thread.start()
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        try:
            while any(thread.is_alive() for thread in threads):
                live.update(_columns(conversations, replies, console.width), refresh=True)
                for thread in threads:
                    thread.join(_REFRESH_SECONDS)
        except KeyboardInterrupt:
            for request in requests:
                request.is_abandoned = True
            for thread in threads:
                thread.join()
        live.update(_columns(conversations, replies, console.width), refresh=True)
    for conversation, reply in zip(conversations, replies, strict=True):
        conversation.answered(reply)


def _columns(conversations: list[Conversation], replies: list[str], width: int) -> Columns:
    each = max(width // len(replies) - 1, 20)
    return Columns(
        [
            Panel(Text(shown(reply)), title=conversation.name, width=each)
            for conversation, reply in zip(conversations, replies, strict=True)
        ]
    )
