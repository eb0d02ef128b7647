"""`rlhf chat` as a user meets it: from a pipe, and in a terminal."""

import contextlib
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

from whole_loop_home import (
    PATIENCE_SECONDS,
    RLHF,
    assert_one_paragraph,
    environment_of,
    rlhf_here,
)

OPTIONS = ("--max-tokens", "12", "--temperature", "0")


def piped(home: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RLHF, "chat", *arguments],
        input=text,
        env=environment_of(home, PYTHONIOENCODING="utf-8:strict"),  # as in en_US.UTF-8
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_a_pipe_is_a_dialogue(home: Path):
    """A line is a message; the second reply knows the first. Two versions take turns."""
    out = piped(home, "the moon\n\nand again\n", "--version", "V2", "--compare", "sft", *OPTIONS)
    assert out.returncode == 0, out.stderr
    assert re.findall(r"^(rlhf-v\d): ", out.stdout, re.MULTILINE) == [
        "rlhf-v2", "rlhf-v0", "rlhf-v2", "rlhf-v0",
    ]  # fmt: skip
    assert out.stderr == ""


def test_what_cannot_be_is_one_paragraph(home: Path, tmp_path: Path):
    out = rlhf_here("chat", "hello", "--version", "V9", home=home)
    assert_one_paragraph(out, "no policy V9", "sft, V1, V2")
    out = rlhf_here("chat", "hello", home=tmp_path / "none")
    assert_one_paragraph(out, "it has: none")
    assert not (tmp_path / "none").exists()
    out = rlhf_here("chat", "word " * 5000, *OPTIONS, home=home)
    assert_one_paragraph(out, "Shorten it")
    out = piped(home, "hello\nword \udcff\n", *OPTIONS)
    assert_one_paragraph(out, "Line 2", "not UTF-8")
    out = piped(home, "hello\n" + "word " * 5000, *OPTIONS)
    assert_one_paragraph(out, "Line 2", "Shorten it")


def test_a_byte_order_mark_is_no_text(home: Path):
    marked, plain = (piped(home, text, *OPTIONS) for text in ("\ufeffthe moon\n", "the moon\n"))
    assert marked.stdout == plain.stdout != ""


class Terminal:
    """`rlhf chat` in a pseudo-terminal."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [RLHF, "chat", *arguments],
            env=environment_of(home, TERM="xterm", COLUMNS="100", LINES="40"),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.said = ""

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while words not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.said):
            assert time.monotonic() < deadline, self.said
            assert select.select([self._master], [], [], PATIENCE_SECONDS)[0], self.said
            self.said += os.read(self._master, 65536).decode(errors="replace")

    def type(self, line: str) -> None:
        self.said = ""
        os.write(self._master, f"{line}\n".encode())

    def end(self) -> int:
        with contextlib.suppress(OSError):  # the terminal is gone with the program
            while os.read(self._master, 65536):
                pass
        code = self.process.wait(PATIENCE_SECONDS)
        os.close(self._master)
        return code


def test_a_terminal_side_by_side(home: Path):
    terminal = Terminal(home, "--version", "V2", "--compare", "V1", *OPTIONS)
    try:
        terminal.wait_for("rlhf-v2 and rlhf-v1. /system")
        terminal.wait_for("> ")
        terminal.type("the moon")
        terminal.wait_for("╭")  # both in one row of boxes
        terminal.wait_for("rlhf-v2")
        terminal.wait_for("rlhf-v1")
        terminal.wait_for("> ")
        terminal.type("word " * 700)
        terminal.wait_for("Shorten it")
        terminal.type("/system be brief")
        terminal.wait_for("System message set")
        terminal.type("/what")
        terminal.wait_for("/reset begins anew")
        terminal.type("/quit")
        assert terminal.end() == 0
    finally:
        terminal.process.kill()
