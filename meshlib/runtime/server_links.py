"""All connections to management servers: whose server each name goes to, and which servers are in use.

An old-style name goes to the top-level `xds_servers`, an `xdstp` name to those of its authority. Equal servers share one
connection, whoever lists them. Everything runs on the control thread.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from meshlib.errors import ConfigError
from meshlib.runtime.server_link import ConnectionStatus, ServerLink
from meshlib.xds.bootstrap import Bootstrap, ServerConfig
from meshlib.xds.cache import CacheShare, ResourceCache, ResourceState
from meshlib.xds.fallback import Fallback, Health
from meshlib.xds.names import is_xdstp, parse_xdstp
from meshlib.xds.resources import TYPE_URLS, short_name

__all__ = ["MakeLink", "ServerLinks"]

MakeLink = Callable[[ServerConfig, CacheShare, "ServerLink | None"], ServerLink]
"""Makes a link that is down, and goes on with the machine of an older one if there is one."""
Wanted = Mapping[str, frozenset[str]]


class _Group:
    """The servers of one authority, and what is wanted of them."""

    def __init__(self, servers: tuple[ServerConfig, ...], *, on_reachability_only: bool, always: bool = False) -> None:
        self.servers = servers
        self.fallback = Fallback(on_reachability_only=on_reachability_only)
        self.wanted: Wanted = {}
        self.always = always

    @property
    def is_wanted(self) -> bool:
        return self.always or any(self.wanted.values())

    @property
    def active(self) -> ServerConfig:
        """The last server in use; the first when none is."""
        return self.servers[max(0, self.fallback.in_use - 1)]


class ServerLinks:
    """Keeps the streams up that are needed, one for each server."""

    def __init__(self, bootstrap: Bootstrap, cache: ResourceCache, make_link: MakeLink) -> None:
        """Make the connection to the first server; down, like any that follows until `connect`."""
        self._cache = cache
        self._make_link = make_link
        self._node = f" (xDS node ID:{bootstrap.node.id})" if bootstrap.node.id else ""
        # The top-level servers are connected to before anything is wanted: the first call waits less.
        self._default = _Group(bootstrap.servers, on_reachability_only=False, always=True)
        self._groups: dict[str | None, _Group] = {None: self._default}
        for name, authority in bootstrap.authorities.items():
            self._groups[name] = _Group(authority.servers, on_reachability_only=authority.fallback_on_reachability_only)
        self._shares: dict[ServerConfig, CacheShare] = {}
        self._links: dict[ServerConfig, ServerLink] = {}
        self._homeless = CacheShare(cache)
        self._wanted: Wanted = {}
        self._is_on = False
        self.step()

    def renew(self) -> None:
        """Make all links anew, down, with the machines that they have: after a stop or a fork."""
        self._is_on = False
        for server, link in self._links.items():
            self._links[server] = self._make_link(server, self._shares[server], link)

    # What is going on.

    @property
    def status(self) -> ConnectionStatus:
        """How the connection is that old-style names depend on now."""
        return self._links[self._default.active].status

    @property
    def statuses(self) -> tuple[ConnectionStatus, ...]:
        """How all connections are, the preferred ones first."""
        return tuple(link.status for link in tuple(self._links.values()))

    @property
    def links(self) -> Mapping[ServerConfig, ServerLink]:
        return self._links

    def server_of(self, name: str) -> ServerConfig | None:
        """Return the server that a name is asked of now, the active one; None: its authority is unknown."""
        group = self._group(name)
        return None if group is None else group.active

    def unreachable(self, waiting: Mapping[str, tuple[str, ...]]) -> Mapping[str, str]:
        """Return why there is no hope for now, of those that wait for a resource whose servers have all failed.

        Args:
            waiting: What each waits for: `LDS resource checkout`.
        """
        found: dict[str, str] = {}
        for who, missing in waiting.items():
            for what in missing:
                failure = self._failure(what.partition(" resource ")[2])
                if failure:
                    found.setdefault(who, f"{what}: {failure}{self._node}")
        return found

    # What to do.

    def connect(self, delay_s: float = 0.0) -> None:
        """Open the streams, now or later."""
        self._is_on = True
        for link in self._links.values():
            link.connect(delay_s)

    def disconnect(self) -> None:
        """Take the streams down. What is known stays."""
        self._is_on = False
        for link in self._links.values():
            link.disconnect()

    def want(self, wanted: Wanted) -> None:
        """Subscribe to exactly these names."""
        if wanted is not self._wanted:
            self._wanted = wanted
            self._split(wanted)
        if not self.step():
            self._distribute()

    def answer(self) -> None:
        """Have all servers hear of what came from them."""
        for link in self._links.values():
            link.answer()

    def step(self) -> bool:
        """Look which servers are to be in use, after anything that happened to one; True: others than before."""
        changed = False
        for group in self._groups.values():
            health = [self._health(server) for server in group.servers]
            changed |= group.fallback.step(
                health, is_wanted=group.is_wanted, has_open_question=partial(self._is_open, group)
            )
        if changed:
            self._change_servers()
            self._distribute()
        return changed

    def adopt_spares(self, now: float) -> bool:
        """Let copies from disk stand in for what no server answers for; returns whether there were any."""
        adopted = False
        for server in dict.fromkeys(group.active for group in self._groups.values() if group.fallback.in_use):
            link = self._links[server]
            if link.may_use_spares:
                adopted |= link.machine.adopt_spares(now)
        return adopted

    # Parts of the above.

    def _health(self, server: ServerConfig) -> Health:
        link = self._links.get(server)
        if link is None:
            return Health()
        return Health(is_up=link.status.is_up, is_failing=not link.status.is_up and link.status.failures > 0)

    def _failure(self, name: str) -> str:
        """Return how the last of the servers of a name has failed, when all have."""
        group = self._group(name)
        if not name or group is None or not all(self._health(server).is_failing for server in group.servers):
            return ""
        status = self._links[group.servers[-1]].status
        return f"xDS channel for server {status.server_uri}: {status.reason}"

    def _is_open(self, group: _Group) -> bool:
        for type_url, names in group.wanted.items():
            for name in names:
                entry = self._cache.peek(type_url, name)
                if entry is None or entry.is_open_question:
                    return True
        return False

    def _group(self, name: str) -> _Group | None:
        if not is_xdstp(name):
            return self._default
        try:
            return self._groups.get(parse_xdstp(name).authority)
        except ConfigError:
            return None

    def _split(self, wanted: Wanted) -> None:
        """Give each authority its names; say of the others why they cannot be had."""
        if len(self._groups) == 1 and not any(is_xdstp(name) for names in wanted.values() for name in names):
            self._default.wanted = wanted
            self._homeless.release()
            return
        parts: dict[str | None, dict[str, set[str]]] = {authority: {} for authority in self._groups}
        homeless: dict[str, str] = {}
        for type_url, names in wanted.items():
            homeless.clear()
            for name in names:
                try:
                    parts[self._authority(type_url, name)].setdefault(type_url, set()).add(name)
                except ConfigError as error:
                    homeless[name] = error.message
            self._refuse(type_url, homeless)
        for type_url in TYPE_URLS:
            if type_url not in wanted:
                self._refuse(type_url, {})
        for authority, part in parts.items():
            self._groups[authority].wanted = {type_url: frozenset(names) for type_url, names in part.items()}

    def _authority(self, type_url: str, name: str) -> str | None:
        if not is_xdstp(name):
            return None
        parsed = parse_xdstp(name)
        if parsed.authority not in self._groups:
            raise ConfigError(f'authority "{parsed.authority}" not present in bootstrap config', resource=name)
        if parsed.resource_type != type_url.rpartition("/")[2]:
            raise ConfigError(f"the name is of type {parsed.resource_type}, not {short_name(type_url)}", resource=name)
        return parsed.authority

    def _refuse(self, type_url: str, reasons: Mapping[str, str]) -> None:
        self._homeless.retain(type_url, reasons)
        for name, reason in reasons.items():
            entry = self._homeless.add(type_url, name)
            entry.state, entry.error = ResourceState.RECEIVED_ERROR, reason

    def _in_use(self) -> Iterable[ServerConfig]:
        return dict.fromkeys(
            server for group in self._groups.values() for server in group.servers[: group.fallback.in_use]
        )

    def _change_servers(self) -> None:
        in_use = self._in_use()
        links: dict[ServerConfig, ServerLink] = {}
        for server in in_use:
            link = self._links.get(server)
            if link is None:
                share = self._shares[server] = CacheShare(self._cache)
                link = self._make_link(server, share, None)
                if self._is_on:
                    link.connect()
            links[server] = link
        before, self._links = self._links, links
        for server, link in before.items():
            if server not in links:
                link.disconnect()
                # The others have what they want of it, and nobody will ask for the rest.
                self._shares.pop(server).release()

    def _distribute(self) -> None:
        """Have each server asked for what all authorities that use it want."""
        for server, link in self._links.items():
            groups = [g for g in self._groups.values() if server in g.servers[: g.fallback.in_use]]
            if len(groups) == 1:
                link.want(groups[0].wanted)
                continue
            union: dict[str, frozenset[str]] = {}
            for group in groups:
                for type_url, names in group.wanted.items():
                    union[type_url] = union.get(type_url, frozenset()) | names
            link.want(union)
