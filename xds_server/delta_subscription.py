"""What one incremental stream has subscribed to of one type; requests say what changes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xds_server.collective import covers, is_glob
from xds_server.subscription import InFlight, Subscription


@dataclass(slots=True)
class DeltaSubscription(Subscription):
    """A subscription whose requests add and take away names.

    `known` begins with what the client says that it has. It may hold names that are not subscribed to (REC-4), which then
    say nothing.

    Attributes:
        retell: Names to be said to be gone although nothing says that the client has them: it unsubscribed from them and
            the wildcard does not cover them, or it rejected the response that said so.
    """

    retell: set[str] = field(default_factory=set)

    def begin(
        self, subscribe: Iterable[str], unsubscribe: Iterable[str], initial: Mapping[str, str], *, resend: bool
    ) -> None:
        """Take over the first request for the type.

        Args:
            initial: Name to version of what the client has.
            resend: Send what is named, although the client has it (REC-3).
        """
        asked = set(subscribe)
        globs = [name for name in asked if is_glob(self.type_url, name)]
        self.known = {
            name: version
            for name, version in initial.items()
            if self.is_full_state or name in asked or any(covers(glob, name) for glob in globs)
        }
        if self.is_full_state and not asked:  # WC-2: everything, as long as nothing is named
            self._widen()
            return
        kept = {} if resend else {name: version for name, version in self.known.items() if name in asked or globs}
        self._change(asked, frozenset(unsubscribe))
        self.known.update((name, version) for name, version in kept.items() if self.wants(name))

    def change(self, subscribe: Iterable[str], unsubscribe: Iterable[str]) -> None:
        """Take over the names of a later request.

        Source: management server rules, section 4.1, and section 5 for the wildcard.
        """
        asked = frozenset(subscribe)
        if self.is_full_state and self.legacy and not asked:
            return  # WC-5: there is nothing yet that could be unsubscribed from
        self._change(asked, frozenset(unsubscribe))

    def rejected(self, response: InFlight, error: str) -> None:
        Subscription.rejected(self, response, error)
        if response.only_removals:  # nothing could correct it
            self.suspect.difference_update(response.names)
        if unwanted := {name for name in response.names if not self.wants(name)}:
            # The client may have thrown away the good ones because of one that it had just unsubscribed from.
            self._leave_suspects(unwanted)

    def _widen(self) -> None:
        self.wildcard = True
        if self.in_flight is not None:
            # It will be taken as an answer to the wildcard that is there again: what it names and has gone meanwhile
            # must be said to be gone.
            self.retell.update(set(self.in_flight.names) - self.known.keys())
        self.must_answer = self.pending = self.urgent = True  # DX-6

    def _change(self, asked: Iterable[str], dropped: frozenset[str]) -> None:
        """Subscribe first, then unsubscribe."""
        asked = frozenset(asked)
        if asked:
            self.legacy = False
            self.pending = self.urgent = True
        if "*" in asked and self.is_full_state and not self.wildcard:
            self._widen()
        added = asked - {"*"}
        for name in added:
            self._forget(name)  # so that it is sent, or sent again (DX-1)
            self.retell.discard(name)
        self.unreported |= added
        names = self.names | added
        if "*" in dropped and self.wildcard:
            self.wildcard = self.must_answer = False
            for name in self.known.keys() - names:
                del self.known[name]
            self.forget_named((self.named.keys() | self.doubtful.keys()) - names)
        leaving = (dropped - {"*"}) & names
        self.names = names - leaving
        for name in leaving:
            self._forget(name)
            self.forget_named((name,))
            if self.wildcard:  # the client has dropped it, so it must hear whether it still has it
                self.retell.add(name)
                self.pending = self.urgent = True
        self.unreported -= leaving
        self.resend = {name for name in self.resend if self.wants(name)}
        if not self.wildcard:
            self.retell = {name for name in self.retell if name in self.names}
        if unwanted := {name for name in self.suspect if not self.wants(name)}:
            self._leave_suspects(unwanted)

    def _forget(self, name: str) -> None:
        """Take it that the client does not have a resource, or the members of a glob that nothing else asks for."""
        self.known.pop(name, None)
        if is_glob(self.type_url, name):
            for member in [one for one in self.known if covers(name, one) and one not in self.names]:
                del self.known[member]

    def _leave_suspects(self, unwanted: set[str]) -> None:
        """Without what may have been the cause of a rejection, the rest of the rejected response is sent again."""
        rest = self.suspect - unwanted
        self.suspect.clear()
        self.resend |= rest & self.known.keys()
        self.retell |= rest - self.known.keys()
        self.pending = True
