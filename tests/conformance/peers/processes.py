"""Child processes that end with the test, and waiting with a deadline."""

import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self, TypeVar

T = TypeVar("T")
POLL_S = 0.02
_ENTRY = re.compile(r"\n\[\d{4}-\d\d-\d\d ")
"""How each entry of Envoy's log begins."""


def poll(question: Callable[[], T], what: str, *, timeout_s: float = 60.0, every_s: float = POLL_S) -> T:
    """Ask until the answer is true, and return it.

    Raises:
        AssertionError: It was not in time; the text has the last answer.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := question()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain for {what}; the last answer was {answer!r}")
        time.sleep(every_s)
    return answer


class Child:
    """A process whose stderr goes into a file, and which ends with the `with` block at the latest."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = subprocess.DEVNULL,
    ) -> None:
        self.name = name
        self._read = 0
        self.log = folder / f"{name}.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdin=stdin, stdout=stdout, stderr=log, text=True, bufsize=1
            )

    @property
    def stdin(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stdout(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def tail(self, lines: int = 30) -> str:
        """Return the end of what it wrote to stderr."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def news(self) -> str:
        """Return what it wrote to stderr since this was asked last."""
        with self.log.open(errors="replace") as log:
            log.seek(self._read)
            text = log.read()
            self._read = log.tell()
        return text

    def reason(self, *words: str, every_s: float = POLL_S) -> str:
        """Wait until it has written one of the words, and return what it wrote from the last of them on, of that entry alone.

        Args:
            words: In front of a reason; what comes first in a text is looked for first.
        """
        text = self.news_with(*words, every_s=every_s)
        start = next((place for word in words if (place := text.rfind(word)) >= 0), 0)
        return _ENTRY.split(text[start:])[0].strip()

    def news_with(self, *words: str, every_s: float = POLL_S) -> str:
        """Wait until it has written one of the words, and return what it wrote since this was asked last.

        What a process counts is seen before what it writes.
        """
        text = ""

        def is_written() -> bool:
            nonlocal text
            text += self.news()
            return any(word in text for word in words)

        poll(is_written, f"{self.name} to write {' or '.join(words)}", every_s=every_s)
        return text

    def check_alive(self) -> None:
        code = self.process.poll()
        assert code is None, f"{self.name} ended with code {code}:\n{self.tail()}"

    def stop(self) -> None:
        """End it: closed input, SIGTERM, then SIGKILL."""
        process = self.process
        if process.stdin is not None:
            process.stdin.close()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
