"""Requests and responses to and from bytes."""

from meshlib.model.endpoint import Locality
from meshlib.protos import message_class
from meshlib.xds.bootstrap import NodeConfig
from meshlib.xds.resources import CDS, EDS, RESOURCE_WRAPPER
from meshlib.xds.wire import (
    AnyBytes,
    RequestEncoder,
    ResourceError,
    SendDelta,
    SendRequest,
    decode_response,
    encode_delta_request,
    encode_request,
    peek_name,
)

REQUEST = message_class("envoy.service.discovery.v3.DiscoveryRequest")
RESPONSE = message_class("envoy.service.discovery.v3.DiscoveryResponse")
RESOURCE = message_class("envoy.service.discovery.v3.Resource")
NODE = NodeConfig("orders-1", "orders", Locality("r", "z", "s"))


def test_the_first_request_names_the_node() -> None:
    message = REQUEST.FromString(encode_request(SendRequest(CDS, ("a", "b"), "", "", with_node=True), NODE))
    assert (message.node.id, message.node.cluster, message.node.user_agent_name) == ("orders-1", "orders", "meshlib")
    assert list(message.resource_names) == ["a", "b"]
    assert not message.HasField("error_detail")


def test_a_refusal_has_code_3_and_the_text() -> None:
    message = REQUEST.FromString(encode_request(SendRequest(CDS, (), "1", "n2", "bad"), NODE))
    assert not message.HasField("node")
    assert (message.version_info, message.response_nonce) == ("1", "n2")
    assert (message.error_detail.code, message.error_detail.message) == (3, "bad")


def test_requests_that_repeat_their_names_are_as_if_made_anew() -> None:
    encoder, names, others = RequestEncoder(NODE), ("a", "b"), ("c",)
    requests = [
        SendRequest(CDS, names, "", "", with_node=True),
        SendRequest(CDS, names, "1", "n1"),
        SendRequest(EDS, names, "", ""),
        SendRequest(CDS, others, "1", "n2", "bad"),
        SendRequest(CDS, (), "1", "n3"),
        SendRequest(CDS, names, "2", "n4"),
    ]
    for request in requests:
        assert REQUEST.FromString(encode_request(request, NODE)) == REQUEST.FromString(encoder.encode(request))
    delta = SendDelta(CDS, names)
    assert encode_delta_request(delta, NODE) == encoder.encode(delta)


def test_wrapped_resources_are_unwrapped() -> None:
    wrapper = RESOURCE(name="a", version="7")
    wrapper.resource.type_url, wrapper.resource.value = CDS, b"body"
    message = RESPONSE(type_url=CDS, version_info="1", nonce="n")
    message.resources.add(type_url=CDS, value=b"plain")
    message.resources.add(type_url=RESOURCE_WRAPPER, value=wrapper.SerializeToString())
    message.resources.add(type_url=RESOURCE_WRAPPER, value=RESOURCE(name="b").SerializeToString())
    message.resources.add(type_url=RESOURCE_WRAPPER, value=b"\xff")
    response = decode_response(message.SerializeToString())
    assert response is not None
    assert response.resources == (
        AnyBytes(CDS, b"plain"),
        AnyBytes(CDS, b"body", "a", "7"),
        AnyBytes("", None, "b"),
        AnyBytes(RESOURCE_WRAPPER, None),
    )


def test_resource_errors_are_read() -> None:
    message = RESPONSE(type_url=CDS)
    error = message.resource_errors.add()
    error.resource_name.name, error.error_detail.code, error.error_detail.message = "a", 5, "gone"
    response = decode_response(message.SerializeToString())
    assert response is not None
    assert response.errors == (ResourceError("a", 5, "gone"),)


def test_bytes_that_are_no_response_are_ignored() -> None:
    assert decode_response(b"\xff\xff") is None


def test_names_are_read_without_decoding() -> None:
    cluster = message_class("envoy.config.cluster.v3.Cluster")
    for name in ("a", "outbound|80||checkout.default.svc.cluster.local", "é" * 100):
        assert peek_name(cluster(name=name, alt_stat_name="x").SerializeToString()) == name


def test_bytes_without_a_name_in_front_have_none() -> None:
    for body in (b"", b"\x0a", b"\x12\x01a", b"\x0a\xff\xff\xff\xff\xff\xff"):
        assert peek_name(body) == ""
