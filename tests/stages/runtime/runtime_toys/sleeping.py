"""A program for the launcher that says who it is and then waits: no torch, so it starts at once."""

import os
import sys
import time
from pathlib import Path

from stages.runtime.supervisor import die_with_parent

if __name__ == "__main__":
    die_with_parent(os.getppid())
    Path(sys.argv[1], f"pid-{os.getpid()}").touch()
    time.sleep(120)
