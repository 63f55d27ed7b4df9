"""What chance decides for requests without a `Call`."""

from collections import Counter
from dataclasses import replace

import httpx

from meshlib.call import Attempt
from meshlib.clients.httpx_express import begin
from meshlib.model.lb_policy import RingHash
from meshlib.model.snapshot import ClusterConfig
from meshlib.testing import FakeClock, SeededRng, split
from meshlib.testing.source import FakeMesh


def test_canary_keeps_its_shares_where_one_side_goes_the_long_way() -> None:
    """Chance is asked once for a request, also if it turns out that it cannot go the short way."""
    made = split("a", {"old": (80, ["h:1"]), "new": (20, ["h:2"])})
    new = made.clusters["a|new"]
    assert isinstance(new, ClusterConfig)
    hashing = replace(new, cluster=replace(new.cluster, lb_policy=RingHash()))
    snapshot = replace(made, clusters={**made.clusters, "a|new": hashing})
    mesh = FakeMesh(snapshot, clock=FakeClock(), rng=SeededRng(5), guard_unsafe=True, is_disabled=False)
    target = mesh.target("a")
    assert target is not None
    request = httpx.Request("GET", "http://a/")
    kinds, shares = Counter[str](), Counter[str]()
    for _ in range(4000):
        begun = begin(mesh, lambda target: (mesh.view, None), request, "a", target)
        assert begun is not None
        call, step = begun.joined()
        assert isinstance(step, Attempt)
        kinds[f"{type(begun).__name__} {call.cluster_name}"] += 1
        shares[call.cluster_name] += 1
        call.close(0.0)
    assert 1 == kinds["Routed a|old"]  # the first, which left its way
    assert shares["a|new"] == kinds["Routed a|new"]
    assert 700 < shares["a|new"] < 900
