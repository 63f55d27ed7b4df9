"""The page that says what is tested where names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "testing.md"


def named() -> list[tuple[str, str]]:
    """Return (file, test) of all tests on the page; a file counts until the next one, and that of a table's head below it."""
    found, file = [], ""
    for token in re.findall(r"`([\w/]+\.py|test_\w+)`", PAGE.read_text()):
        if token.endswith(".py"):
            file = token
            assert (ROOT / "tests" / file).is_file(), file
        else:
            found.append((file, token))
    return found


@pytest.mark.parametrize(("file", "name"), sorted(set(named())))
def test_tests_that_the_page_names_exist(file: str, name: str) -> None:
    text = (ROOT / "tests" / file).read_text()
    assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"no {name} in tests/{file}"


def test_the_page_has_every_point_and_mistake() -> None:
    text = PAGE.read_text()
    assert [str(number) for number in range(1, 14)] == re.findall(r"^\| (\d+)\. ", text, re.MULTILINE)
    mistakes = text.partition("## What other clients got wrong")[2].partition("## ")[0]
    assert 11 == len(re.findall(r"^\| [A-Z]", mistakes, re.MULTILINE)) - 1  # the head
