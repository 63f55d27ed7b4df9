"""The other types of resource from the real go-control-plane: scopes, filters, runtime values, secrets, times to live."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from foreign import control_plane as xds
from foreign.control_plane import ADS, EDS, KINDS, ControlPlane
from foreign.mesh import FORMS, Client
from foreign.tls import TlsUpstream
from peers.authority import Authority
from peers.processes import poll

Connect = Callable[..., Client]
TLS = f"{KINDS}envoy.extensions.transport_sockets.tls.v3."
FAULT = f"{KINDS}envoy.extensions.filters.http.fault.v3.HTTPFault"
RUNTIME = f"{KINDS}envoy.service.runtime.v3.Runtime"


def test_scopes(server: ControlPlane, connect: Connect, upstreams: dict[str, int]) -> None:
    header = {"header_value_extractor": {"name": "x-tenant", "index": 0}}
    scoped = {
        "name": "by-tenant",
        "scope_key_builder": {"fragments": [header]},
        "rds_config_source": ADS,
        "scoped_rds": {"scoped_rds_config_source": ADS},
    }

    def scope(key: str, routes: str) -> dict[str, Any]:
        kind = f"{KINDS}envoy.config.route.v3.ScopedRouteConfiguration"
        fragments = {"fragments": [{"string_key": key}]}
        return {"@type": kind, "name": key, "key": fragments, "route_configuration_name": routes}

    base = [xds.listener("shop", scoped_routes=scoped)]
    for name in ("v1", "v2"):
        base += [xds.routes(name, xds.to(name)), xds.cluster(name), xds.endpoints(name, upstreams[name])]
    server.put(*base, scope("red", "v1"))
    client = connect(server)

    def ask(tenant: str) -> str:
        answer = client.http.get("http://shop/", headers={"x-tenant": tenant})
        return str(answer.json()["version"]) if answer.status_code == 200 else str(answer.status_code)

    assert ["v1", "404"] == [ask("red"), ask("blue")]
    server.put(*base, scope("red", "v1"), scope("blue", "v2"))
    poll(lambda: ask("blue") == "v2", "a scope that comes")
    server.put(*base, scope("red", "v2"), scope("blue", "v2"))
    poll(lambda: ask("red") == "v2", "a scope that changes")
    assert [] == server.refusals()


def test_filters_and_runtime_values(server: ControlPlane, connect: Connect, upstreams: dict[str, int]) -> None:
    """A fault comes over ECDS; how often it strikes is a value of RTDS."""
    discovered = {"config_source": ADS, "type_urls": [FAULT]}

    def extension(status: int) -> dict[str, Any]:
        fault = {"abort": {"http_status": status, "percentage": {"numerator": 0}}, "abort_percent_runtime": "abort"}
        kind = f"{KINDS}envoy.config.core.v3.TypedExtensionConfig"
        return {"@type": kind, "name": "fault", "typed_config": {"@type": FAULT, **fault}}

    def values(percent: int) -> dict[str, Any]:
        return {"@type": RUNTIME, "name": "rollout", "layer": {"abort": percent}}

    base = [
        xds.listener("shop", "shop", {"name": "fault", "config_discovery": discovered}),
        *xds.service("shop", upstreams["v1"])[1:],
    ]
    server.put(*base, extension(418), values(0))
    layers = [{"name": "live", "rtds_layer": {"name": "rollout", "rtds_config": ADS}}]
    client = connect(server, meshlib={"layered_runtime": {"layers": layers}})
    assert "v1" == client.get("http://shop/")
    server.put(*base, extension(418), values(100))
    poll(lambda: client.http.get("http://shop/").status_code == 418, "the value")
    server.put(*base, extension(419), values(100))
    poll(lambda: client.http.get("http://shop/").status_code == 419, "the filter")
    server.put(*base, extension(419), values(0))
    poll(lambda: client.http.get("http://shop/").status_code == 200, "the value again")
    assert [] == server.refusals()


def test_certificates_and_roots(server: ControlPlane, connect: Connect, tmp_path: Path, stack: ExitStack) -> None:
    """Secrets come over SDS and are replaced: with foreign roots nothing goes out, with the right ones again."""
    root, foreign = Authority(), Authority("foreign")
    shop = "spiffe://peers.example/ns/default/sa/shop"
    upstream = stack.enter_context(TlsUpstream("tls", tmp_path, root.issue(shop), root))

    def secrets(trusted: Authority) -> list[dict[str, Any]]:
        leaf = root.issue("spiffe://peers.example/ns/default/sa/orders")
        files = {"certificate_chain": leaf.chain_pem, "private_key": leaf.key_pem}
        inline = {name: {"inline_string": pem.decode()} for name, pem in files.items()}
        roots = {"trusted_ca": {"inline_string": trusted.pem.decode()}}
        return [
            {"@type": f"{TLS}Secret", "name": "mine", "tls_certificate": inline},
            {"@type": f"{TLS}Secret", "name": "roots", "validation_context": roots},
        ]

    names = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": shop}}]}
    common = {
        "tls_certificate_sds_secret_configs": [{"name": "mine", "sds_config": ADS}],
        "combined_validation_context": {
            "default_validation_context": names,
            "validation_context_sds_secret_config": {"name": "roots", "sds_config": ADS},
        },
    }
    tls = {"@type": f"{TLS}UpstreamTlsContext", "common_tls_context": common}
    socket = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    found = xds.service("shop", upstream.port)
    base = [found[0], found[1], xds.cluster("shop", transport_socket=socket), found[3]]
    server.put(*base, *secrets(root))
    client = connect(server)
    assert "tls" == client.get("http://shop/")
    server.put(*base, *secrets(foreign))
    poll(lambda: "certificate" in client.refusal("http://shop/").lower(), "the foreign roots")
    server.put(*base, *secrets(root))
    poll(lambda: not client.refusal("http://shop/"), "the roots again")
    assert [] == server.refusals()


@pytest.mark.parametrize("form", ["sotw", "sotw separate"])
def test_what_has_a_time_to_live_lives_by_heartbeats(
    form: str, tmp_path: Path, stack: ExitStack, upstreams: dict[str, int]
) -> None:
    """Endpoints are given three seconds and a heartbeat each second; without the server they are gone after that.

    Incrementally go-control-plane sends no times to live.
    """
    server = stack.enter_context(ControlPlane(tmp_path, "-cache", "snapshot", "-heartbeat", "1s"))
    server.put(*xds.service("checkout", upstreams["v1"]), ttl_s={EDS: 3})
    client = Client(stack, server, *FORMS[form])
    assert "v1" == client.get("http://checkout/")

    def beats() -> int:
        return len(server.said(EDS, kind="response"))

    before = beats()
    poll(lambda: beats() >= before + 6, "heartbeats", timeout_s=40)
    assert "v1" == client.get("http://checkout/")
    assert [] == server.refusals()
    server.stop()
    poll(lambda: client.refusal("http://checkout/"), "the endpoints to be gone")
