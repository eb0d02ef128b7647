"""Memory that a step freed is there for the next one."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
from stages.runtime.heap import keep_freed_memory

if {keep}:
    keep_freed_memory()
for step in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [b"x" * 2**24 for _ in range(8)]
    del activations
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults_of_the_last_step(keep: bool) -> int:
    code = STEPS.format(keep=keep)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_step_faults_nothing_in_that_the_one_before_freed():
    assert page_faults_of_the_last_step(keep=False) > 10_000
    assert page_faults_of_the_last_step(keep=True) < 1000
