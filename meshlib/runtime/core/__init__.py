"""TLS to SPIFFE peers inside gRPC's core: its own xDS client, fed by a management server of ours in this process.

grpcio's Python API can neither require a URI in the peer's certificate nor show the certificate, but its core can do
the former for channels that get their configuration by xDS. So one `xds:///` channel for all endpoints is told, by a
server on a unix socket in a folder of ours, of clusters whose peers must match our patterns, with certificates from
files that live in memory. Which endpoint a call goes to is still decided by the mesh: a cookie names it, and every
endpoint is marked so that core never chooses it by itself. A peer is verified before the first byte of application data.

What could go wrong, and what is done about each:

1. A cluster without patterns would accept any certificate of the CA: `CoreCluster` refuses to be made without.
2. Core compares exact names as DNS names, ignoring letter case: names are sent as regular expressions.
3. Core does not insist on one URI in a certificate. Every connection to an endpoint is first made over the relay, which
   does, and is repeated there after each change of certificates, trust or expected names.
4. A merged bundle would let one CA vouch for another's trust domain: each bundle is a provider of its own, and bundles by
   SPIFFE trust domain stay with the relay.
5. Core's default limit of 1,024 requests a cluster is lifted; the mesh's own breakers count.
6. The reason of a refusal is lost: an attempt that core did not send goes over the relay, which knows the reason.
7. Core knows no transport socket matches: each combination of TLS settings is a cluster of its own here.
8. The channel argument with the bootstrap promises nothing: a self-test with a right and a wrong peer decides,
   in versions whose core survives it.
9. A wrong peer with a chain of the right CA gets to see our certificate, as after any TLS 1.3 handshake.
10. The environment's HTTP proxy is not for these channels.
"""

from meshlib.runtime.core.ads import LocalAds
from meshlib.runtime.core.channel import is_unsent, new_node_id, open_aio, open_sync
from meshlib.runtime.core.resources import CoreCluster, cookie, is_plain_trust, san_patterns
from meshlib.runtime.core.selftest import STOPPED, is_too_old, self_test
from meshlib.runtime.core.slots import Slots

__all__ = [
    "STOPPED",
    "CoreCluster",
    "LocalAds",
    "Slots",
    "cookie",
    "is_plain_trust",
    "is_too_old",
    "is_unsent",
    "new_node_id",
    "open_aio",
    "open_sync",
    "san_patterns",
    "self_test",
]
