"""What CSDS shows of each resource, and what it never shows."""

from types import SimpleNamespace
from typing import Any

import pytest

from meshlib.admin.csds import client_status, client_status_dict, client_status_text
from meshlib.model.discovery import Collection, ScopedRoute
from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.protos import from_any, from_dict
from meshlib.xds.cache import Entry, ResourceState
from meshlib.xds.decode_bootstrap import parse_bootstrap
from meshlib.xds.redact import REDACTED, redacted
from meshlib.xds.resources import CDS, EDS, LDS, LEDS, SDS, SRDS

SECRET = b"-----BEGIN PRIVATE KEY----- very secret"
EDS_BODY = from_dict("envoy.config.endpoint.v3.ClusterLoadAssignment", {"cluster_name": "a"}).SerializeToString()
TLS = "envoy.extensions.transport_sockets.tls.v3."


class FakeMesh:
    def __init__(self, *entries: Entry) -> None:
        bootstrap = {
            "xds_servers": [{"server_uri": "s:1", "channel_creds": [{"type": "insecure"}]}],
            "node": {"id": "n"},
        }
        self.bootstrap = parse_bootstrap(bootstrap, origin="test")
        self._control = SimpleNamespace(entries=lambda: entries)

    def clock(self) -> float:
        return 1000.0


def shown(*entries: Entry, **options: bool) -> Any:
    (config,) = client_status(FakeMesh(*entries), **options).config  # type: ignore[arg-type]
    return config


def entry(state: ResourceState, *, has_value: bool = False, **fields: Any) -> Entry:
    found = Entry(EDS, "a", state=state, **fields)
    if has_value:
        found.value, found.body, found.version = ClusterLoadAssignment("a"), EDS_BODY, "7"
        found.updated_at = 990.0
    return found


@pytest.mark.parametrize(
    ("found", "number", "has_value", "has_error"),
    [
        (entry(ResourceState.REQUESTED, has_value=True, is_spare=True), 0, True, False),
        (entry(ResourceState.REQUESTED), 1, False, False),
        (entry(ResourceState.DOES_NOT_EXIST, error="does not exist"), 2, False, True),
        (entry(ResourceState.ACKED, has_value=True), 3, True, False),
        (entry(ResourceState.NACKED, error="bad", failed_version="8"), 4, False, True),
        (entry(ResourceState.NACKED, has_value=True, error="bad", failed_version="8"), 4, True, True),
        (entry(ResourceState.RECEIVED_ERROR, error="forbidden"), 5, False, True),
        (entry(ResourceState.TIMEOUT, error="timeout"), 6, False, True),
    ],
)
def test_every_state_has_its_number_and_its_parts(found: Entry, number: int, has_value: bool, has_error: bool) -> None:
    (one,) = shown(found).generic_xds_configs
    assert (EDS, "a", number) == (one.type_url, one.name, one.client_status)
    assert (has_value, has_value, "7" if has_value else "") == (
        one.HasField("xds_config"),
        one.HasField("last_updated"),
        one.version_info,
    )
    assert has_error is one.HasField("error_state")
    if has_error:
        assert (found.error, found.failed_version) == (one.error_state.details, one.error_state.version_info)
    if has_value:
        assert "a" == from_any(one.xds_config).cluster_name


def test_times_are_those_of_the_wall() -> None:
    found = entry(ResourceState.NACKED, has_value=True, error="bad", failed_at=995.0)
    (one,) = shown(found).generic_xds_configs
    stamps = (one.error_state.last_update_attempt, one.last_updated)
    later, earlier = (stamp.ToNanoseconds() / 1e9 for stamp in stamps)
    assert 5.0 == pytest.approx(later - earlier)
    assert earlier > 1e9  # the epoch, not the monotonic clock


def test_the_node_is_named_and_contents_can_be_left_out() -> None:
    config = shown(entry(ResourceState.ACKED, has_value=True), exclude_contents=True)
    assert ("n", "meshlib") == (config.node.id, config.node.user_agent_name)
    assert not config.generic_xds_configs[0].HasField("xds_config")


def test_a_mesh_that_was_not_started_has_nothing_to_show() -> None:
    mesh = FakeMesh()
    mesh._control = None  # type: ignore[assignment]
    assert not client_status(mesh).config  # type: ignore[arg-type]


def test_resources_are_told_as_json_and_as_lines() -> None:
    mesh: Any = FakeMesh(
        entry(ResourceState.NACKED, has_value=True, error="bad", failed_version="8"), Entry(LDS, "shop")
    )
    configs = client_status_dict(mesh)["config"][0]["generic_xds_configs"]
    assert ["NACKED", "REQUESTED"] == [config["client_status"] for config in configs]
    first, second = client_status_text(mesh).splitlines()
    assert first.startswith("EDS a: NACKED, version 7 in use for ")
    assert first.endswith(" - version 8: bad")
    assert "LDS shop: REQUESTED" == second


def secret_of(fields: dict[str, Any]) -> bytes:
    data: bytes = from_dict(f"{TLS}Secret", {"name": "default", **fields}).SerializeToString()
    return data


def test_a_private_key_is_not_shown_and_its_certificate_is() -> None:
    body = secret_of(
        {
            "tls_certificate": {
                "certificate_chain": {"inline_string": "chain"},
                "private_key": {"inline_string": SECRET.decode()},
                "password": {"inline_string": SECRET.decode()},
            }
        }
    )
    found = Entry(SDS, "default", value=ClusterLoadAssignment(""), body=body, state=ResourceState.ACKED)
    config = shown(found)
    assert SECRET not in config.SerializeToString()
    secret = from_any(config.generic_xds_configs[0].xds_config)
    assert "chain" == secret.tls_certificate.certificate_chain.inline_string
    assert REDACTED == secret.tls_certificate.private_key.inline_string


@pytest.mark.parametrize(
    "fields",
    [
        {"session_ticket_keys": {"keys": [{"inline_string": SECRET.decode()}]}},
        {"generic_secret": {"secret": {"inline_string": SECRET.decode()}}},
        {"generic_secret": {"secrets": {"k": {"inline_string": SECRET.decode()}}}},
        {
            "tls_certificate": {
                "private_key_provider": {
                    "provider_name": "p",
                    "typed_config": {
                        "@type": "type.googleapis.com/google.protobuf.StringValue",
                        "value": SECRET.decode(),
                    },
                }
            }
        },
    ],
)
def test_other_secrets_are_not_shown_either(fields: dict[str, Any]) -> None:
    assert SECRET not in redacted(SDS, secret_of(fields))


def test_keys_deep_inside_other_resources_are_not_shown() -> None:
    certificate = {"certificate_chain": {"inline_string": "chain"}, "private_key": {"inline_string": SECRET.decode()}}
    socket = {
        "name": "tls",
        "typed_config": {
            "@type": f"type.googleapis.com/{TLS}UpstreamTlsContext",
            "common_tls_context": {"tls_certificates": [certificate]},
        },
    }
    message = from_dict("envoy.config.cluster.v3.Cluster", {"name": "c", "transport_socket": socket})
    found = redacted(CDS, message.SerializeToString())
    assert SECRET not in found
    assert b"chain" in found


def test_what_nobody_can_read_is_left_out() -> None:
    message = from_dict("envoy.config.cluster.v3.Cluster", {"name": "c", "transport_socket": {"name": "t"}})
    message.transport_socket.typed_config.type_url = "type.googleapis.com/unknown.Type"
    message.transport_socket.typed_config.value = SECRET
    found = redacted(CDS, message.SerializeToString())
    assert SECRET not in found
    assert b"c" in found
    assert b"" == redacted("type.googleapis.com/unknown.Type", SECRET)
    assert b"" == redacted(CDS, b"\xff")


def test_subscription_to_many_resources_is_none_of_them() -> None:
    whole, one = Entry(SRDS, "*", state=ResourceState.ACKED), Entry(SRDS, "a", state=ResourceState.ACKED)
    whole.value, one.value = Collection(), ScopedRoute("a", ("x",), "r")
    silent = Entry(LEDS, "xdstp://a/b/*")
    assert [(config.type_url, config.name) for config in shown(whole, one, silent).generic_xds_configs] == [
        (LEDS, "xdstp://a/b/*"),
        (SRDS, "a"),
    ]
