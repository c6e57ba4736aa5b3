"""A handful of the kills of benchmarks/kill_stages.py: whatever moment a process dies at, the run ends the same."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.e2e
def test_a_run_that_is_killed_again_and_again_ends_as_the_undisturbed_one(tmp_path):
    """In a process of its own: the fakes that stand in for engines must not be met by another test."""
    command = [sys.executable, str(BENCHMARKS / "kill_stages.py"), "--kills", "12", "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"differences": []' in done.stdout
