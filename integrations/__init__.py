"""Adapters to frameworks, one module each; a framework is imported by its adapter and nothing else.

`default_mesh()` is the process-wide mesh for frameworks that offer no place to keep one (Django, gunicorn).
"""

from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["default_mesh", "set_default_mesh"]

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
