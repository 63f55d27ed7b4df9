"""Checks of what an application passes: an option of a wrong type or value is refused where it is given, by its name.

Otherwise `passthrough="unkown"` would count as `never`, and `first_use_timeout_s="5"` would fail in some later call, in the
words of an arithmetic operation. For what is made once; nothing here is called per request.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

__all__ = ["check_callable", "check_choice", "check_count", "check_number", "check_type", "entries", "name_of"]

T = TypeVar("T")


def check_type(option: str, value: object, *kinds: type, none: bool = False) -> None:
    """Refuse a value that is of none of some types; `None` is one of them where `none` says so.

    Raises:
        TypeError: Names the option, the types and the one that was given.
    """
    if (none and value is None) or isinstance(value, kinds):
        return
    wanted = [kind.__name__ for kind in kinds] + ["None"] * none
    raise TypeError(f"{option}: must be {' or '.join(wanted)}, is {_kind(value)}")


def check_callable(option: str, value: object, *, none: bool = False) -> None:
    """Refuse what cannot be called.

    Raises:
        TypeError: It names the option.
    """
    if not callable(value) and not (none and value is None):
        raise TypeError(f"{option}: must be a function, is {_kind(value)}")


def check_choice(option: str, value: object, choices: Collection[str]) -> None:
    """Refuse what is none of some words.

    Raises:
        ValueError: It names the option and the words.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{option}={value!r}: must be {' or '.join(repr(choice) for choice in choices)}")


def check_number(option: str, value: object, *, least: float | None = None, none: bool = False) -> None:
    """Refuse what is no number, or one below `least`, which NaN is.

    Raises:
        TypeError: It is no number.
        ValueError: It is too small.
    """
    if none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{option}: must be a number{' or None' * none}, is {_kind(value)}")
    if least is not None and not value >= least:
        raise ValueError(f"{option}={value!r}: must be at least {least:g}")


def check_count(option: str, value: object, *, least: int = 1) -> None:
    """Refuse what is no whole number, or fewer than `least`.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{option}: must be a whole number, is {_kind(value)}")
    if value < least:
        raise ValueError(f"{option}={value!r}: must be at least {least}")


def entries(option: str, value: Iterable[T], of: str) -> tuple[T, ...]:
    """Return the entries of a sequence; text and mappings are none.

    Args:
        of: What they are, for the error.

    Raises:
        TypeError: It names the option.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{option}: must be a sequence of {of}, is {_kind(value)}")
    return tuple(value)


def name_of(function: Callable[..., Any]) -> str:
    """Return what a function is called; of an object that can be called, its class; of a `partial`, what it calls."""
    while (inner := getattr(function, "func", None)) is not None and not hasattr(function, "__name__"):
        function = inner
    return str(getattr(function, "__name__", type(function).__name__))


def _kind(value: object) -> str:
    """What a value is; not the value: it may be a secret."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
