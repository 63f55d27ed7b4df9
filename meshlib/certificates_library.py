"""`cryptography`, imported when something of it is first used: a mesh without certificates does without its 8 MB.

What comes from a peer as a certificate or a key is read on the control thread before anybody needs it, so a request never
waits for the import. Annotations that name its classes are strings.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography import exceptions, x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["ec", "exceptions", "hashes", "serialization", "x509"]


class _Deferred:
    """Stands for a module. Safe for several threads, as imports are."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)


if not TYPE_CHECKING:
    exceptions = _Deferred("cryptography.exceptions")
    x509 = _Deferred("cryptography.x509")
    hashes = _Deferred("cryptography.hazmat.primitives.hashes")
    serialization = _Deferred("cryptography.hazmat.primitives.serialization")
    ec = _Deferred("cryptography.hazmat.primitives.asymmetric.ec")
