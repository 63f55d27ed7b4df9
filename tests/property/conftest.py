"""Laws are about what holds, not about how fast an example runs: on a busy machine one may take any time.

Each test has its time limit all the same (`timeout` in `pyproject.toml`).
"""

from hypothesis import settings

settings.register_profile("meshlib", deadline=None)
settings.load_profile("meshlib")
