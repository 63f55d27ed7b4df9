"""The main job, in its fast form: seven acts with real processes, each asserted by the demo itself."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_seven_acts_hold(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meshlib.cli", "demo", "--fast"],
        capture_output=True,
        text=True,
        timeout=580,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "assertions of the 7 acts held" in done.stdout
    assert "Traceback" not in done.stderr
