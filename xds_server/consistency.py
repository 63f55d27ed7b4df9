"""What must hold of a state before it is published (CON-2): whatever a resource names is there."""

from collections.abc import Collection, Iterator

from xds_server.model import Finding, Severity
from xds_server.ordering import EDS, FULL_STATE_TYPES, RDS, SDS, short_name
from xds_server.snapshot import Resource, Snapshot
from xds_server.stream import MAX_RESPONSE_BYTES

EMPTY_NAME = "MESH0100"
NAMED_RESOURCE_MISSING = "MESH0101"
SECRET_MISSING = "MESH0102"
SECRET_IN_DOCUMENTS = "MESH0103"
UNREFERENCED = "MESH0104"
RESPONSE_TOO_LARGE = "MESH0105"


def check(
    snapshot: Snapshot,
    *,
    group: str,
    secrets: Collection[str],
    max_response_bytes: int = MAX_RESPONSE_BYTES,
) -> tuple[Finding, ...]:
    """Return what is wrong with a state; errors forbid publishing it.

    Args:
        group: Names the group in the texts.
        secrets: Names of the secrets that an authenticated client can have.
    """
    return (
        *_references(snapshot, group, frozenset(secrets)),
        *_secrets_and_names(snapshot, group),
        *_unreferenced(snapshot, group),
        *_sizes(snapshot, group, max_response_bytes),
    )


def _references(snapshot: Snapshot, group: str, secrets: frozenset[str]) -> Iterator[Finding]:
    needed_secrets: set[str] = set()
    for type_url, resource in _all(snapshot):
        for kind, name in resource.references:
            where = f"{group}: {short_name(type_url)} {resource.name!r} names {short_name(kind)} {name!r}"
            if kind == SDS:
                needed_secrets.add(name)
                if secrets and name not in secrets:
                    message = f"{where}, which this server does not issue: it can be {' or '.join(sorted(secrets))}"
                    yield Finding(Severity.ERROR, SECRET_MISSING, message)
            elif name not in snapshot.state(kind).resources:
                yield Finding(Severity.ERROR, NAMED_RESOURCE_MISSING, f"{where}, which does not exist")
    if needed_secrets and not secrets:
        # No error: connections without mTLS are not to wait for it, and those that need it fail closed.
        names = " and ".join(sorted(needed_secrets))
        message = (
            f"{group}: mTLS needs the secrets {names}, and this server issues no certificates: start it with "
            "--state-dir; until then connections that need them fail"
        )
        yield Finding(Severity.WARNING, SECRET_MISSING, message)


def _secrets_and_names(snapshot: Snapshot, group: str) -> Iterator[Finding]:
    for name in snapshot.state(SDS).resources:
        message = f"{group}: Secret {name!r} cannot come from documents; secrets are issued to each identity"
        yield Finding(Severity.ERROR, SECRET_IN_DOCUMENTS, message)
    for type_url, resource in _all(snapshot):
        if not resource.name:
            yield Finding(Severity.ERROR, EMPTY_NAME, f"{group}: a {short_name(type_url)} has an empty name")


def _unreferenced(snapshot: Snapshot, group: str) -> Iterator[Finding]:
    """Only types that nobody can ask for without being told their names (CON-3: never a reason to be silent)."""
    named = {reference for _, resource in _all(snapshot) for reference in resource.references}
    for type_url in (EDS, RDS):
        for name in snapshot.state(type_url).resources:
            if (type_url, name) not in named:
                message = f"{group}: nothing names {short_name(type_url)} {name!r}"
                yield Finding(Severity.WARNING, UNREFERENCED, message)


def _sizes(snapshot: Snapshot, group: str, max_response_bytes: int) -> Iterator[Finding]:
    for type_url, state in snapshot.types.items():
        if type_url in FULL_STATE_TYPES:
            size, what = state.size_bytes, f"all {len(state.resources)} of type {short_name(type_url)}"
        else:
            largest = max(state.resources.values(), key=lambda resource: len(resource.field), default=None)
            if largest is None:
                continue
            size, what = len(largest.field), f"{short_name(type_url)} {largest.name!r}"
        if size > max_response_bytes:
            message = (
                f"{group}: {what} need {size} bytes in one response; gRPC clients refuse more than 4 MiB "
                "unless they ask for less by name"
            )
            yield Finding(Severity.WARNING, RESPONSE_TOO_LARGE, message)


def _all(snapshot: Snapshot) -> Iterator[tuple[str, Resource]]:
    for type_url, state in snapshot.types.items():
        for resource in state.resources.values():
            yield type_url, resource
