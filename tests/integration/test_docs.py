"""The documentation's code runs as it is written.

A fenced block with a file name after its language is that file; lines of a `console` block that begin with `$ ` are
commands, those that end with `&` run until the page is over. Well-known ports are replaced by free ones, so that pages
can run side by side.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PORTS = ("18000", "18001", "18002", "9001", "9002", "15020")
FENCE = re.compile(
    r"^```(\w+)(?: +(\S+))?\n(.*?)^```$|^<!-- wait for (\d+) registrations -->$", re.MULTILINE | re.DOTALL
)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)


class Page:
    """A folder in which the page's files are made and its commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
        self.ports = dict(zip(PORTS, (str(held.getsockname()[1]) for held in sockets), strict=True))
        for held in sockets:
            held.close()
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
            command, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60
        )
        logs = "\n".join(path.read_text() for path in sorted(self.folder.glob("background-*.log")))
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}\n{logs}"

    def wait_registrations(self, count: int) -> None:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{self.ports['18002']}/v1/registrations", timeout=2
                ) as answer:
                    found = json.load(answer)
            except OSError:
                found = []
            if len(found["registrations"] if isinstance(found, dict) else found) >= count:
                return
            time.sleep(0.1)
        pytest.fail(
            f"{count} registrations did not come\n"
            + "\n".join(p.read_text() for p in self.folder.glob("background-*.log"))
        )

    def wait_listening(self, port: str) -> None:
        deadline = time.monotonic() + 30
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
            process.wait(15)


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


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["tutorial/first-mesh.md", "how-to/observe.md"])
def test_page_works_as_written(page: Page, name: str) -> None:
    assert play(page, (ROOT / "docs" / name).read_text()) > 0


@pytest.mark.timeout(120)
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


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    broken = []
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
            if not target.startswith(("http://", "https://")) and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)} -> {target}")
    assert [] == broken
