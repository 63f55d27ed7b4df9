"""Adapters to frameworks, one module each; a framework is imported by its adapter and nothing else.

An adapter is loaded when it is first named (`meshlib.integrations.fastapi.MeshMiddleware`).

`default_mesh()` is the process-wide mesh for frameworks that offer no place to keep one (Django, gunicorn).
"""

from importlib import import_module
from importlib.util import find_spec
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["default_mesh", "set_default_mesh"]


def __getattr__(name: str) -> ModuleType:
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


_lock = Lock()
_default: "Mesh | None" = None


def default_mesh() -> "Mesh":
    """Return the process-wide mesh, made by `Mesh.from_env()` on first use.

    Raises:
        BootstrapError: There is no usable bootstrap in the environment.
    """
    global _default
    from meshlib.mesh import Mesh

    with _lock:
        if _default is None:
            _default = Mesh.from_env()
        return _default


def set_default_mesh(mesh: "Mesh | None") -> None:
    """Make a mesh the process-wide one; None: the next `default_mesh()` makes a new one."""
    global _default
    with _lock:
        _default = mesh
