"""The process of a stage, above a supervised crew: python -m runtime_toys.parent FOLDER WAY."""

import os
import subprocess
import sys

from stages.runtime.supervisor import WORK_VARIABLE

if __name__ == "__main__":
    folder, behaviour = sys.argv[1:]
    supervised = ["runtime_toys.crew", folder, behaviour]
    command = [sys.executable, "-m", "stages.runtime.supervisor", str(os.getpid()), folder]
    environment = os.environ | {WORK_VARIABLE: folder}
    process = subprocess.Popen([*command, *supervised], env=environment, start_new_session=True)
    print(process.pid, flush=True)
    sys.exit(process.wait())
