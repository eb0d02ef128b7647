"""What `rlhf status` and `--help` must not wait for."""

import subprocess
import sys

HEAVY = ("torch._dynamo", "deepspeed", "statsmodels", "matplotlib", "prefect", "mlflow", "pandas")


def test_reading_a_recipe_and_a_home_imports_nothing_heavy():
    code = (
        "import sys, flows.cli, flows.models, flows.planner, flows.report\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_help_does_without_torch():
    code = "import sys, flows.cli; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
