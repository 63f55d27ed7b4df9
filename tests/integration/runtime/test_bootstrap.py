"""What a bootstrap says, from the file to the wire: profiles of validation, credentials, several meshes in a process."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshlib import Mesh
from meshlib.view import ClusterState
from meshlib.xds.resources import CDS

STRICT, DELTA = "meshlib.validation_grpc", "meshlib.delta"


def eventually(look: Callable[[], Any], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def ports(mesh: Mesh, cluster: str = "checkout") -> list[int]:
    state = mesh.view.clusters.get(cluster)
    return sorted(found.endpoint.port for found in state.states.values()) if isinstance(state, ClusterState) else []


def server(address: str, *features: str, creds: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    channel = [{"type": "what-we-do-not-know"}, creds or {"type": "insecure"}]
    return {"server_uri": address, "channel_creds": channel, "server_features": ["xds_v3", *features], **fields}


def write(folder: Path, *servers: dict[str, Any], node: str = "orders-1") -> Path:
    path = folder / f"{node}.json"
    path.write_text(json.dumps({"xds_servers": list(servers), "node": {"id": node}}))
    return path


@pytest.mark.parametrize("variant", ["ads", "delta_ads"])
def test_the_profile_of_the_bootstrap_refuses_what_grpc_refuses_and_keeps_the_last_good(
    variant: str, request: pytest.FixtureRequest, tmp_path: Path, tools: Any
) -> None:
    """1. Both meshes use the cluster. 2. It becomes one that only Envoy takes. 3. One refuses it and goes on with the old."""
    ads = request.getfixturevalue(variant)
    features = [DELTA] if variant == "delta_ads" else []
    strict = write(tmp_path, server(ads.address, STRICT, *features), node="strict")
    plain = write(tmp_path, server(ads.address, *features), node="plain")
    with Mesh(strict, state_dir="") as mesh, Mesh(plain, state_dir="") as other:
        for one in (mesh, other):
            one.wait_ready("checkout", timeout_s=10)
        ads.put(CDS, {**tools.eds_cluster("checkout"), "lb_policy": "MAGLEV"})
        ads.wait_for(lambda: any(request.HasField("error_detail") for request in ads.of_type(CDS)))
        (nack,) = [request for request in ads.of_type(CDS) if request.HasField("error_detail")]
        assert (nack.error_detail.code, "checkout: lb_policy: MAGLEV is not a policy of gRPC") == (
            3,
            nack.error_detail.message.partition("resource index 0: ")[2].rstrip("]"),
        )
        (refused,) = [found for found in mesh.dump() if found.error]
        assert (refused.name, refused.state, refused.is_in_use) == ("checkout", "NACKED", True)
        assert ports(mesh) == [1]
        eventually(lambda: {found.state for found in other.dump()} == {"ACKED"})
        ads.put(CDS, {**tools.eds_cluster("checkout"), "lb_policy": "RING_HASH"})
        eventually(lambda: {found.state for found in mesh.dump()} == {"ACKED"})
