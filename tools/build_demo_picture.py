"""Write docs/demo.svg: what the terminal shows at the end of a real `meshctl demo --fast`. Takes about a minute.

Not part of `make docs`, since every run has other numbers.
"""

import io
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

TARGET = Path(__file__).resolve().parent.parent / "docs" / "demo.svg"


def main() -> int:
    """Play the demo, and draw its last screen if every assertion held."""
    demo = import_module("meshlib.cli.demo")  # the package's attribute of that name is the command
    boards: list[Any] = []

    def make_board(console: Console) -> Any:
        boards.append(board := make(console))
        return board

    make, demo.Board = demo.Board, make_board
    code: int = demo.run_demo(fast=True, plain=True)
    if code == 0:
        console = Console(record=True, width=132, force_terminal=True, color_system="truecolor", file=io.StringIO())
        console.print(boards[-1].screen())
        picture = console.export_svg(title="meshctl demo")
        # Without the fonts that rich would have a reader's browser fetch: any monospaced one will do.
        TARGET.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))
    return code


if __name__ == "__main__":
    sys.exit(main())
