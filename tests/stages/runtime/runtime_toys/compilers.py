"""Train at every ZeRO stage; print the commands that were run: python -m runtime_toys.compilers"""

import json
import sys
import warnings
from typing import Any

from runtime_toys.models import build, train
from stages.runtime.distributed import process_group


def main() -> None:
    warnings.simplefilter("error")
    commands: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"):
            commands.append(repr(arguments))

    sys.addaudithook(watch)
    rank = process_group()
    for zero_stage in (0, 1, 2):
        train(build(rank, zero_stage), rank, range(2), [12])
    train(build(rank, 1, "bf16"), rank, range(2), [12])
    train(build(rank, 2, offload_optimizer=True), rank, range(2), [12])
    print(json.dumps(commands))


if __name__ == "__main__":
    main()
