"""The code of docs/how-to/filters.md runs."""

import re
from pathlib import Path


def test_code_of_the_page_runs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "how-to" / "filters.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), "filters.md", "exec"), {})
