"""The pages that are made from the code are what the code says now."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("tool", "name"),
    [("build_xds_features", "xds-features.md"), ("build_api_reference", "api.md"), ("build_profiles", "profiles.md")],
)
def test_page_is_up_to_date(tool, name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")  # as for a script: modules of its own stand beside it
    page = runpy.run_path(str(ROOT / "tools" / f"{tool}.py"))["page"]
    assert page() == (ROOT / "docs" / "reference" / name).read_text(), "run `make docs`"
