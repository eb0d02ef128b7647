"""A program for the launcher that says who it is and then waits: no torch, so it starts at once."""

import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    Path(sys.argv[1], f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    from stages.runtime.supervisor import die_with_parent

    die_with_parent(os.getppid())
    time.sleep(120)
