"""Names that are not a resource's own: globs of xdstp names (LEDS), and hosts that a virtual host serves (VHDS)."""

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from xds_server.ordering import LEDS, VHDS

R = TypeVar("R", covariant=True)


class Resources(Protocol[R]):
    """What names are looked up in."""

    @property
    def resources(self) -> Mapping[str, R]: ...

    @property
    def aliases(self) -> Mapping[str, R]: ...


def is_glob(type_url: str, name: str) -> bool:
    """Tell whether a name stands for all resources below a path."""
    return type_url == LEDS and name.startswith("xdstp://") and name.partition("?")[0].endswith("/*")


def covers(glob: str, name: str) -> bool:
    """Tell whether a resource is directly below the path of a glob, with the same context parameters."""
    path, _, params = glob.partition("?")
    own, _, own_params = name.partition("?")
    return params == own_params and own.rpartition("/")[0] == path.rpartition("/")[0] and own != path


def find_all(type_url: str, state: Resources[R], names: Iterable[str]) -> dict[str, R]:
    """Return the resources that a client asks for, by the names that it knows them by.

    Of a glob those are the members' own; of a virtual host that answers to several hosts, every name asked for.
    """
    resources = state.resources
    if type_url == VHDS:
        return {name: host for name in names if (host := _virtual_host(state, name)) is not None}
    found = {name: resources[name] for name in names if name in resources}
    globs = [name for name in names if is_glob(type_url, name)]
    if globs:
        found.update((name, one) for name, one in resources.items() if any(covers(glob, name) for glob in globs))
    return found


def _virtual_host(state: Resources[R], name: str) -> R | None:
    """Return what serves `<route configuration>/<host>`: by its own name, then as Envoy matches domains."""
    found = state.resources.get(name) or state.aliases.get(name)
    if found is not None or not state.aliases:
        return found
    routes, _, host = name.rpartition("/")
    patterns = (
        *(f"{routes}/*{host[start:]}" for start in range(1, len(host))),
        *(f"{routes}/{host[:end]}*" for end in range(len(host) - 1, 0, -1)),
        f"{routes}/*",
    )
    return next((state.aliases[pattern] for pattern in patterns if pattern in state.aliases), None)
