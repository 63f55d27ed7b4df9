"""Making a disagreement small: parts of the configuration and the request are left out while it persists."""

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from differential.generate import WEIGHT_HEADER, Json, Request

Path = tuple[str | int, ...]
MAX_TRIES = 300


def shrink(configuration: Json, request: Request, persists: Callable[[Json, Request], bool]) -> tuple[Json, Request]:
    """Return a smaller configuration and request for which `persists` still holds."""
    tries = 0
    progress = True
    while progress and tries < MAX_TRIES:
        progress = False
        for candidate in smaller_configurations(configuration):
            tries += 1
            if persists(candidate, request):
                configuration, progress = candidate, True
                break
            if tries >= MAX_TRIES:
                break
        else:
            for smaller in _smaller_requests(request):
                tries += 1
                if persists(configuration, smaller):
                    request, progress = smaller, True
                    break
    return configuration, request


def shrink_json(value: Json, persists: Callable[[Json], bool], kept: Collection[str]) -> Json:
    """Return a smaller value for which `persists` still holds; each part is tried once.

    Args:
        kept: Keys of which neither they nor what is in them is left out.
    """
    tried = 0
    while tried < MAX_TRIES:
        # What is left out was after all that has been tried.
        for candidate in islice(smaller_configurations(value, kept), tried, None):
            if persists(candidate):
                value = candidate
                break
            tried += 1
        else:
            break
    return value


def smaller_configurations(configuration: Json, kept: Collection[str] = ()) -> Iterator[Json]:
    """Leave out one part after the other.

    Args:
        kept: As for `shrink_json`.
    """
    # Large parts first: their paths are short.
    for path in sorted(_paths(configuration), key=len):
        if any(step in kept for step in path):
            continue
        if path == ("name",) or path[-1] == "header_name":
            continue  # by the one Envoy knows the configuration, without the other weights are left to chance
        candidate = copy.deepcopy(configuration)
        parent: Any = candidate
        for step in path[:-1]:
            parent = parent[step]
        del parent[path[-1]]
        yield candidate


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _paths(item, (*path, key))


def _smaller_requests(request: Request) -> Iterator[Request]:
    for index, (name, _) in enumerate(request.headers):
        if name == WEIGHT_HEADER:
            continue
        yield replace(request, headers=request.headers[:index] + request.headers[index + 1 :])
    if "?" in request.path:
        yield replace(request, path=request.path.partition("?")[0])
