"""Copies of requests: the policies of routes, of the levels above them, and of clusters."""

from typing import Any, Final

from meshlib.model.matcher import Fraction
from meshlib.model.route import MirrorPolicy
from meshlib.xds.decode_common import cover, join
from meshlib.xds.decode_headers import header_changes
from meshlib.xds.decode_matcher import runtime_fraction
from meshlib.xds.problems import Problems

__all__ = ["mirror_policies"]

_MIRROR_USED: Final = frozenset(
    {
        "cluster",
        "cluster_header",
        "runtime_fraction",
        "disable_shadow_host_suffix_append",
        "host_rewrite_literal",
        "request_headers_mutations",
    }
)


def mirror_policies(messages: Any, path: str, problems: Problems) -> tuple[MirrorPolicy, ...]:
    """Decode a repeated RequestMirrorPolicy field."""
    return tuple(_mirror(message, f"{path}[{index}]", problems) for index, message in enumerate(messages))


def _mirror(message: Any, path: str, problems: Problems) -> MirrorPolicy:
    cover(message, path, problems, used=_MIRROR_USED, harmless=frozenset({"trace_sampled"}))
    if bool(message.cluster) == bool(message.cluster_header):
        problems.error(join(path, "cluster"), "exactly one of cluster, cluster_header is required")
    share = Fraction(100)
    if message.HasField("runtime_fraction"):
        share = runtime_fraction(message.runtime_fraction, join(path, "runtime_fraction"), problems)
    return MirrorPolicy(
        message.cluster,
        share,
        keeps_host=message.disable_shadow_host_suffix_append,
        cluster_header=message.cluster_header.lower(),
        host_rewrite=message.host_rewrite_literal,
        changes=header_changes(message.request_headers_mutations, join(path, "request_headers_mutations"), problems),
    )
