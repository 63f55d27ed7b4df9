"""What both variants' models share: states of which each resource names another, and what a client may rely on.

The version of a resource says which one it names, so that versions move traffic from one to the other.
"""

from collections.abc import Iterable, Mapping

from hypothesis import strategies as st

from xds_server.ordering import CDS, EDS, LDS, RDS
from xds_server.snapshot import Resource, Snapshot, TypeState

TYPES = (CDS, EDS, LDS, RDS)
NAMES = ("a", "b", "c")
VERSIONS = ("1", "2", "bad")
BREAK_DELAY_S = 5.0

_NEXT = {CDS: EDS, LDS: RDS, RDS: CDS}
_STEP = {"1": 0, "2": 1, "bad": 2, "good": 2}

Ref = tuple[str, str]
Content = dict[str, dict[str, str]]

contents = st.fixed_dictionaries(
    {type_url: st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VERSIONS)) for type_url in TYPES}
)


def named_by(type_url: str, name: str, version: str) -> tuple[Ref, ...]:
    if type_url not in _NEXT:
        return ()
    return ((_NEXT[type_url], NAMES[(NAMES.index(name) + _STEP[version]) % len(NAMES)]),)


def consistent(content: Content) -> Content:
    """Return what the listeners of a state need, and nothing else: all that is named is there, as publishers see to."""
    found: Content = {type_url: {} for type_url in TYPES}
    waiting = [(LDS, name) for name in content[LDS]]
    while waiting:
        kind, name = waiting.pop()
        if name not in found[kind]:
            found[kind][name] = content[kind].get(name, "1")
            waiting.extend(named_by(kind, name, found[kind][name]))
    return found


def snapshot_of(content: Content) -> Snapshot:
    return Snapshot(
        {
            type_url: TypeState.of(
                Resource(name, version, b"\x12\x00", named_by(type_url, name, version))
                for name, version in resources.items()
            )
            for type_url, resources in content.items()
        }
    )


Versions = Mapping[Ref, set[str]]
"""Of resources that a client has, is being sent or uses; several while it changes over."""


class Promises:
    """What must not be said to be gone: clients whose traffic goes there may ask for it late.

    That holds for a client that does not change over for `BREAK_DELAY_S`, or as long as it has rejected what it should
    change over to.
    """

    def __init__(self) -> None:
        self._promised: set[Ref] = set()
        self._until = 0.0

    def published(self, before: Content, after: Content, held: Versions, rejected: Versions, now: float) -> None:
        """Take in a new state.

        Args:
            held: What the client has or is being sent.
            rejected: What the client goes on with because it rejected the next version, which is still due.
        """
        gone = {
            (kind, name): version
            for kind in (RDS, CDS, EDS)
            for name, version in before.get(kind, {}).items()
            if name not in after.get(kind, {})
        }
        known = {ref: set(versions) for ref, versions in held.items()}
        for ref, version in gone.items():  # whoever asks for it late is given this one
            known.setdefault(ref, {version})
        if now >= self._until:
            self._promised &= _named(rejected)
        self._promised |= gone.keys() & _reachable(known)
        self._promised -= {(kind, name) for kind, names in after.items() for name in names}
        self._until = now + BREAK_DELAY_S

    def moved(self, held: Versions) -> None:
        """Take in that the client has changed over: what it does not use any more need not be there."""
        self._promised &= _reachable(held)

    def check(self, told: Iterable[Ref], held: Versions, rejected: Versions, now: float) -> None:
        """Check what a response says to be gone; the other arguments are as above."""
        broken = self._promised.intersection(told)
        if now < self._until:
            assert not broken & _reachable(held), "gone before the routes to it have changed over"
        assert not broken & _named(rejected), "gone although what names it is in use, since its successor was rejected"


def _named(versions: Versions) -> set[Ref]:
    return {ref for (kind, name), ones in versions.items() for one in ones for ref in named_by(kind, name, one)}


def _reachable(held: Versions) -> set[Ref]:
    """Follow what a client has from its listeners on."""
    waiting = [ref for ref in held if ref[0] == LDS]
    found: set[Ref] = set()
    while waiting:
        kind, name = waiting.pop()
        for version in held.get((kind, name), ()):
            for ref in named_by(kind, name, version):
                if ref not in found:
                    found.add(ref)
                    waiting.append(ref)
    return found
