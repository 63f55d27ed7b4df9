"""The text of a NACK."""

from collections.abc import Iterable
from typing import Final

from meshlib.xds.wire import ResourceError

__all__ = ["error_problem", "problem", "refusal"]

MAX_ERROR_CHARS: Final = 16_384
"""A NACK is for people; a hundred thousand of the same error help nobody."""


def problem(kind: str, index: int, name: str, errors: Iterable[str]) -> str:
    """Return one part of a NACK's text, as gRPC words it."""
    return f"{kind} index {index}: {f'{name}: ' if name else ''}{'; '.join(errors)}"


def refusal(problems: Iterable[str]) -> str:
    """Return the text of a NACK; empty when there is nothing to complain of."""
    text = "; ".join(problems)
    return f"xDS response validation errors: [{text}]"[:MAX_ERROR_CHARS] if text else ""


def error_problem(error: ResourceError) -> str:
    """Return what is wrong with an entry of `resource_errors`, or nothing."""
    if not error.name:
        return "no name"
    return "" if error.code else "code OK"
