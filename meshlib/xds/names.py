"""Resource names: which name a target asks for, `xdstp` names in their canonical form, and whose servers to ask.

Source: gRFC A47 and xRFC TP1.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from meshlib.errors import ConfigError
from meshlib.xds.bootstrap import Bootstrap, ServerConfig

__all__ = [
    "XdstpName",
    "authority_of",
    "canonical",
    "covers",
    "inbound_name",
    "is_collection",
    "is_xdstp",
    "listener_name",
    "normal",
    "parse_xdstp",
    "servers_for",
    "virtual_host_name",
]

SCHEME: Final = "xdstp:"
WILDCARD: Final = "*"

_PATH_CHARACTERS: Final = "/:@!$&'()*+,;="
"""RFC 3986 section 3.3: what a path may hold beside letters, digits and `-._~`."""

VIRTUAL_HOST: Final = "envoy.config.route.v3.VirtualHost"

_PORT_AT_END: Final = re.compile(r"(?:^[^:]*|\]):[0-9]+$")
"""Of `host:port`; the addresses of IPv6 are in brackets."""

_AUTHORITY_CHARACTERS: Final = ":@[]!$&'()*+,;="


@dataclass(frozen=True, slots=True)
class XdstpName:
    """`xdstp://authority/type/id?params`, decoded.

    Attributes:
        resource_type: Full message name, without `type.googleapis.com/`.
        params: Context parameters, sorted by key, each key once.
    """

    authority: str
    resource_type: str
    id: str
    params: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Return the canonical form: two names are the same resource if and only if these are equal."""
        query = "&".join(f"{_encode(key)}={_encode(value)}" for key, value in self.params)
        path = f"{self.resource_type}/{quote(self.id, safe=_PATH_CHARACTERS)}"
        return f"{SCHEME}//{quote(self.authority, safe=_AUTHORITY_CHARACTERS)}/{path}{'?' + query if query else ''}"


def parse_xdstp(name: str) -> XdstpName:
    """Parse a new-style name.

    Raises:
        ConfigError: It is not of the form `xdstp://authority/type/id`, or has directives after a `#`.
    """
    rest = name.removeprefix(SCHEME)
    if rest == name or not rest.startswith("//"):
        raise ConfigError("not an xdstp:// name", resource=name)
    if "#" in rest:
        raise ConfigError("xdstp name with directives (#...), which are not supported", resource=name)
    location, _, query = rest[2:].partition("?")
    authority, slash, path = location.partition("/")
    resource_type, type_slash, identifier = path.partition("/")
    if not slash or not type_slash or not resource_type:
        raise ConfigError("xdstp name without a resource type and an id", resource=name)
    params: dict[str, str] = {}
    for part in query.split("&") if query else ():
        key, _, value = part.partition("=")
        params.setdefault(unquote(key), unquote(value))
    return XdstpName(unquote(authority), resource_type, unquote(identifier), tuple(sorted(params.items())))


def canonical(name: str) -> str:
    """Return the form in which names are compared: an old-style name is itself, an xdstp name is normalised.

    Raises:
        ConfigError: A malformed xdstp name.
    """
    return str(parse_xdstp(name)) if name.startswith(SCHEME) else name


def is_xdstp(name: str) -> bool:
    """Whether a name is of the new style, well formed or not."""
    return name.startswith(SCHEME)


def normal(name: str) -> str:
    """As `canonical`, and a malformed name as it is: it is refused where its server is looked for."""
    if not name.startswith(SCHEME):
        return name
    try:
        return str(parse_xdstp(name))
    except ConfigError:
        return name


def is_collection(name: str) -> bool:
    """Whether a name stands for many resources: `*` for all of a type, or an xdstp name whose path ends with `/*`."""
    return name == WILDCARD or (name.startswith(SCHEME) and name.partition("?")[0].endswith("/*"))


def covers(collection: str, name: str) -> bool:
    """Whether a resource belongs to a collection. Both names are in their canonical form.

    A glob covers the names that differ in the last part of their path only, and have the same context parameters.
    """
    if collection == WILDCARD:
        return not is_collection(name)
    parent, _, params = collection.partition("?")
    path, _, own = name.partition("?")
    parent = parent[:-1]
    return own == params and path.startswith(parent) and "/" not in path[len(parent) :] and path != parent


def virtual_host_name(routes: str, authority: str) -> str:
    """Return the name by which the virtual host of an authority is asked for (VHDS).

    It is the route configuration's with the authority as a last part; of an xdstp name the type is a virtual host's.

    Args:
        routes: Name of the route configuration.
        authority: Of a request; hosts have no case.
    """
    if not routes.startswith(SCHEME):
        return f"{routes}/{authority.lower()}"
    try:
        parsed = parse_xdstp(routes)
    except ConfigError:
        return f"{routes}/{authority.lower()}"
    return str(XdstpName(parsed.authority, VIRTUAL_HOST, f"{parsed.id}/{authority.lower()}", parsed.params))


def authority_of(name: str) -> str | None:
    """Return the xdstp authority, which may be empty, or None for an old-style name.

    Raises:
        ConfigError: A malformed xdstp name.
    """
    return parse_xdstp(name).authority if name.startswith(SCHEME) else None


def servers_for(bootstrap: Bootstrap, name: str) -> tuple[ServerConfig, ...]:
    """Return the servers to ask for a resource, in order of preference.

    Raises:
        ConfigError: The name is malformed or its authority is not in the bootstrap.
    """
    authority = authority_of(name)
    if authority is None:
        return bootstrap.servers
    if authority not in bootstrap.authorities:
        raise ConfigError(f'authority "{authority}" not present in bootstrap config', resource=name)
    return bootstrap.authorities[authority].servers


def listener_name(bootstrap: Bootstrap, authority: str, *, xds_authority: str = "") -> str:
    """Return the name of the listener that a client's target asks for.

    Args:
        bootstrap: Holds the templates.
        authority: What the caller wrote: `checkout` or `checkout:8080` (the path of an `xds:///` target). Without a port
            it gets the bootstrap's `default_port`, if that is said.
        xds_authority: The authority of an `xds://authority/...` target; empty: the default template.

    Raises:
        ConfigError: The authority is not in the bootstrap, or the template makes a malformed xdstp name; or the name is
            no text that a request can hold.
    """
    if not xds_authority:
        if bootstrap.default_port and not _PORT_AT_END.search(authority):
            authority = f"{authority}:{bootstrap.default_port}"
        return _expand(bootstrap.client_default_listener_resource_name_template, authority)
    if xds_authority not in bootstrap.authorities:
        raise ConfigError(f'authority "{xds_authority}" not present in bootstrap config', resource=authority)
    return _expand(bootstrap.authorities[xds_authority].listener_template, authority)


def inbound_name(bootstrap: Bootstrap, address: str) -> str:
    """Return the name of the listener that a server asks for.

    Args:
        bootstrap: Holds the template.
        address: Listening address as `IP:port`, IPv6 in brackets.

    Raises:
        ConfigError: The bootstrap has no `server_listener_resource_name_template`.
    """
    template = bootstrap.server_listener_resource_name_template
    if template is None:
        raise ConfigError("the bootstrap has no server_listener_resource_name_template, so a server has no listener")
    return _expand(template, address)


def _expand(template: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{value!r} is not the name of a service: {error.reason}", resource=value) from error
    if not template.startswith(SCHEME):
        return template.replace("%s", value)
    return canonical(template.replace("%s", quote(value, safe=_PATH_CHARACTERS)))


def _encode(text: str) -> str:
    return quote(text, safe="/:?@!$'()*+,;")
