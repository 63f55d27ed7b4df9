"""Where the built programs are. `make peers` builds them and says where; without it these tests are not collected."""

import os
from pathlib import Path
from typing import Final

VARIABLE: Final = "MESHLIB_PEERS"


def program(name: str) -> str:
    """Return the path of a program that `make peers` built."""
    path = Path(os.environ[VARIABLE]).resolve() / name
    assert path.is_file(), f"{path} is missing: run make peers"
    return str(path)
