"""The page of finding codes is what the table says."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_page_is_up_to_date():
    page = runpy.run_path(str(ROOT / "tools" / "build_findings.py"))["page"]
    assert page() == (ROOT / "docs" / "reference" / "findings.md").read_text(), "run `make docs`"
