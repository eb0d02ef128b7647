"""Starts sleeping ranks through the launcher, as the process of a task or command line would."""

import signal
import sys
from pathlib import Path

from stages.runtime.launcher import Launch, run_launcher

if __name__ == "__main__":
    # A shell starts its background jobs with SIGINT ignored, and tests may run in one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(sys.argv[1])
    run_launcher("runtime_toys.sleeping", [str(folder)], folder / "log.txt", folder, Launch(2))
