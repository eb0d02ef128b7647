"""A launcher with two ranks in sessions of their own, without torch: for a supervisor's tests.

python -m runtime_toys.crew FOLDER BEHAVIOUR
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from stages.runtime import stopping


def rank(folder: Path, behaviour: str) -> None:
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour == "trains":
        stopping.mark_open(folder, True)
    (folder / f"pid-{os.getpid()}").touch()
    for _ in range(600):
        time.sleep(0.1)
        if behaviour == "trains" and stopping.is_asked(folder):
            time.sleep(0.5)  # the rest of the step
            (folder / f"saved-{os.getpid()}").touch()
            stopping.mark_open(folder, False)
            return


def launch(folder: Path, behaviour: str) -> None:
    (folder / f"launcher-{os.getpid()}").touch()
    command = [sys.executable, "-m", "runtime_toys.crew", str(folder), behaviour, "rank"]
    ranks = [subprocess.Popen(command, start_new_session=True) for _ in range(2)]
    for one in ranks:
        one.wait()


if __name__ == "__main__":
    (rank if "rank" in sys.argv else launch)(Path(sys.argv[1]), sys.argv[2])
