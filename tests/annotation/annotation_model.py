"""A tiny chat model, and a server for it in a thread."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import uvicorn
from starlette.types import ASGIApp

from kernels.model import CausalLM, ModelConfig
from stages.text.tokenizer import Tokenizer
from stages.text.training import train_bpe

CORPUS = [
    "the small cat sat on the wide mat and looked at the moon",
    "a café, naïve — ünïcode",
] * 20


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(train_bpe(CORPUS, 330))


def tiny_model(tokenizer: Tokenizer, max_seq_len: int = 256) -> CausalLM:
    config = ModelConfig(
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        ffn_hidden=64,
        vocab_size=tokenizer.vocab_size,
        max_seq_len=max_seq_len,
    )
    return CausalLM(config, torch.Generator().manual_seed(0))


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The address of an application that runs in a thread."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
