"""The documentation's code runs as it is written.

A fenced block with a file name after its language is that file; lines of a `console` block that begin with `$ ` are
commands, those that end with `&` run until the page is over. Well-known ports are replaced by free ones, so that pages
can run side by side.
"""

import ast
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers.ports import free_port

import meshlib
from meshlib.testing import FakeMesh
from xds_server import translate
from xds_server.model import Severity

ROOT = Path(__file__).resolve().parent.parent.parent
PORTS = ("18000", "18001", "18002", "9001", "9002", "15020")
FENCE = re.compile(
    r"^```(\w+)(?: +(\S+))?\n(.*?)^```$|^<!-- wait for (\d+) registrations -->$", re.MULTILINE | re.DOTALL
)
BLOCK = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)


class Page:
    """A folder in which the page's files are made and its commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {port: str(free_port()) for port in PORTS}
        self.background: list[subprocess.Popen[bytes]] = []
        binaries = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "MESHLIB_STATE_DIR": "",
            "HOME": str(folder),
        }

    def localize(self, text: str) -> str:
        for port, free in self.ports.items():
            text = re.sub(rf"(?<![\d.]){port}(?!\d)", free, text)
        # Commands of the documentation name no port where the default is meant.
        return re.sub(
            r"xds-server serve (.+?)( &|$)",
            rf"xds-server serve \1 --listen 127.0.0.1:{self.ports['18000']} --admin 127.0.0.1:{self.ports['18002']}\2",
            text,
        )

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(self.localize(text))

    def run(self, command: str) -> None:
        command = self.localize(command)
        if command.endswith("&"):
            log = (self.folder / f"background-{len(self.background)}.log").open("wb")
            process = subprocess.Popen(
                command[:-1],
                shell=True,
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            log.close()
            self.background.append(process)
            return
        done = subprocess.run(
            command, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=150
        )
        logs = "\n".join(path.read_text() for path in sorted(self.folder.glob("background-*.log")))
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}\n{logs}"

    def wait_registrations(self, count: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{self.ports['18002']}/v1/registrations", timeout=2
                ) as answer:
                    found = json.load(answer)
            except OSError:
                found = []
            entries = found["registrations"] if isinstance(found, dict) else found
            # An instance is known before it can answer, and gets no calls until it can.
            if len([entry for entry in entries if entry["ready"]]) >= count:
                return
            time.sleep(0.1)
        pytest.fail(
            f"{count} registrations did not come\n"
            + "\n".join(p.read_text() for p in self.folder.glob("background-*.log"))
        )

    def wait_listening(self, port: str) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(self.ports[port])), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, f"nothing listens on {port}"
                time.sleep(0.05)

    def close(self) -> None:
        for process in self.background:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.background:
            process.wait(60)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    made = Page(tmp_path)
    try:
        yield made
    finally:
        made.close()


def play(page: Page, text: str) -> int:
    """Make the files and run the commands of a page; return how many of them there were."""
    steps = 0
    for language, name, body, registrations in FENCE.findall(text):
        if registrations:
            page.wait_registrations(int(registrations))
        elif name:
            page.write(name, body)
            steps += 1
        elif language == "console":
            for line in body.splitlines():
                if line.startswith("$ "):
                    page.run(line[2:])
                    steps += 1
    return steps


@pytest.mark.parametrize(
    "name", ["tutorial/first-mesh.md", "how-to/observe.md", "how-to/functions.md", "how-to/own-policy.md"]
)
def test_page_works_as_written(page: Page, name: str) -> None:
    assert play(page, (ROOT / "docs" / name).read_text()) > 0


def test_quick_start_of_the_readme_works_as_written(page: Page) -> None:
    text = (ROOT / "README.md").read_text().partition("## Quick start")[2].partition("\n## ")[0]
    commands = [line.strip() for line in INDENTED.findall(text)[0].splitlines()]
    assert ". .venv/bin/activate" == commands[0]
    (page.folder / "examples" / "quickstart").mkdir(parents=True)
    page.write("examples/quickstart/hello.yaml", (ROOT / "examples" / "quickstart" / "hello.yaml").read_text())
    program = re.search(r"```python\n(import httpx.*?)```", text, re.DOTALL)
    assert program is not None
    page.write("client.py", program[1])
    for command in commands[1:]:
        page.run(command.replace("/tmp/", "./"))
    for port in ("9001", "9002", "18000"):
        page.wait_listening(port)
    page.run("python client.py")


def blocks(language: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of a language on all pages, each with its place."""
    found = []
    for path in PAGES:
        text = path.read_text()
        for match in BLOCK.finditer(text):
            if match[2] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append((f"{path.relative_to(ROOT)}:{line}", textwrap.dedent(match[3])))
    return found


def missing_names(tree: ast.AST) -> list[str]:
    """Return the modules and names that a program imports and that do not exist, and attributes of `meshlib` likewise."""
    missing = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                missing += [alias.name for alias in names if not is_importable(alias.name)]
            case ast.ImportFrom(module=str(module), names=names):
                if not is_importable(module):
                    missing.append(module)
                    continue
                found = importlib.import_module(module)
                missing += [
                    f"{module}.{alias.name}"
                    for alias in names
                    if not hasattr(found, alias.name) and not is_importable(f"{module}.{alias.name}")
                ]
            case ast.Attribute(value=ast.Name(id="meshlib"), attr=name) if not hasattr(meshlib, name):
                missing.append(f"meshlib.{name}")
            case ast.Attribute(value=ast.Name(id="mesh"), attr=name) if not (
                hasattr(meshlib.Mesh, name) or hasattr(FakeMesh, name) or name in ("clock", "events", "metrics")
            ):
                missing.append(f"mesh.{name}")
    return missing


def is_importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize(("place", "text"), blocks("python"), ids=[place for place, _ in blocks("python")])
def test_python_blocks_compile_and_what_they_import_is_there(place: str, text: str) -> None:
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = compile(text, place, "exec", flags=flags)
    page = (ROOT / place.rpartition(":")[0]).read_text()
    own_files = set(re.findall(r"^```python (\w+)\.py$", page, re.MULTILINE))
    assert [] == [name for name in missing_names(tree) if name not in own_files]


DOCUMENTS = [(place, text) for place, text in blocks("yaml") if "kind:" in text]


@pytest.mark.parametrize(("place", "text"), DOCUMENTS, ids=[place for place, _ in DOCUMENTS])
def test_documents_on_a_page_are_taken_by_the_server(place: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "block.yaml").write_text(text)
    findings = translate.validate([str(tmp_path)])
    # A page shows one document at a time; that others are missing beside it is a warning.
    assert [] == [str(finding) for finding in findings if finding.severity is Severity.ERROR]


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    broken = []
    for path in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", path.read_text()):
            if target.startswith(("http://", "https://", "mailto:")):
                continue
            page = path.parent / target if target else path
            if not page.exists():
                broken.append(f"{path.relative_to(ROOT)} -> {target}")
            elif anchor and anchor not in anchors(page.read_text()):
                broken.append(f"{path.relative_to(ROOT)} -> {target}#{anchor}")
    assert [] == broken


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
