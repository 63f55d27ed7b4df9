"""Whatever a server sends, decoding ends in a value or in errors, and the same bytes always end the same way."""

import random
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.protos import TYPE_PREFIX, message_class, pool
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import TYPE_URLS

STRINGS = (
    "",
    "a",
    "*",
    "*.a.b",
    "/",
    "/a/b",
    "(",
    "a.*",
    "%REQ(x)%",
    "%",
    "10.0.0.1",
    "::1",
    "host",
    ":path",
    "é",
    "\r",
)
NUMBERS = (0, 1, 2, 3, 50, 100, 101, 200, 404, 65535, 65536, 2**31 - 1)
BIG_NUMBERS = (*NUMBERS, 2**32 - 1, 2**32, 2**63 - 1)
FLOATS = (0.0, 1.0, -1.0, 50.0, 1e300, float("nan"), float("inf"))
PACKED = (
    "envoy.config.route.v3.FilterConfig",
    "envoy.extensions.clusters.aggregate.v3.ClusterConfig",
    "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "envoy.extensions.filters.http.rbac.v3.RBAC",
    "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
    "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
    "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality",
    "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "xds.type.v3.TypedStruct",
)
F = FieldDescriptor


def _scalar(rng: random.Random, field: FieldDescriptor) -> Any:
    match field.cpp_type:
        case F.CPPTYPE_STRING:
            text = rng.choice(STRINGS)
            return text.encode() if field.type == F.TYPE_BYTES else text
        case F.CPPTYPE_BOOL:
            return rng.random() < 0.7
        case F.CPPTYPE_ENUM:
            return rng.choice([*field.enum_type.values_by_number, 77])
        case F.CPPTYPE_DOUBLE | F.CPPTYPE_FLOAT:
            return rng.choice(FLOATS[:4] if field.cpp_type == F.CPPTYPE_FLOAT else FLOATS)
        case F.CPPTYPE_INT64:
            return rng.choice((*BIG_NUMBERS, -1))
        case F.CPPTYPE_INT32:
            return rng.choice((*NUMBERS, -1))
        case F.CPPTYPE_UINT64:
            return rng.choice(BIG_NUMBERS)
        case _:
            return rng.choice((*NUMBERS, 2**32 - 1))


class Builder:
    """Builds random messages of bounded size."""

    def __init__(self, seed: int, *, size: int = 150) -> None:
        self.rng = random.Random(seed)
        self.budget = size

    def build(self, full_name: str) -> Any:
        message = message_class(full_name)()
        if full_name == "google.protobuf.Any":
            inner = self.rng.choice(PACKED)
            message.type_url = self.rng.choice((TYPE_PREFIX + inner,) * 8 + ("", TYPE_PREFIX + "no.such.Type"))
            message.value = self.build(inner).SerializeToString() if self.rng.random() < 0.95 else b"\xff"
            return message
        fields = list(message.DESCRIPTOR.fields)
        self.rng.shuffle(fields)
        for field in fields[: self.rng.choice((1, 2, 4, 8))]:
            self._set(message, field)
        return message

    def _set(self, message: Any, field: FieldDescriptor) -> None:
        self.budget -= 1
        kind = field.message_type
        count = self.rng.choice((1, 1, 2))
        if kind is None:
            if field.is_repeated:
                getattr(message, field.name).extend(_scalar(self.rng, field) for _ in range(count))
            else:
                setattr(message, field.name, _scalar(self.rng, field))
        elif self.budget <= 0:
            return
        elif kind.GetOptions().map_entry:
            target, value = getattr(message, field.name), kind.fields_by_name["value"]
            for _ in range(count):
                key = _scalar(self.rng, kind.fields_by_name["key"])
                if value.message_type is None:
                    target[key] = _scalar(self.rng, value)
                else:
                    target[key].CopyFrom(self.build(value.message_type.full_name))
        elif field.is_repeated:
            getattr(message, field.name).extend(self.build(kind.full_name) for _ in range(count))
        else:
            getattr(message, field.name).CopyFrom(self.build(kind.full_name))


@pytest.mark.parametrize("type_url", [*TYPE_URLS, "type.googleapis.com/no.such.Type", ""])
@given(body=st.binary(max_size=64))
def test_arbitrary_bytes_never_raise(type_url: str, body: bytes) -> None:
    decoded = decode_resource(type_url, body)
    assert (decoded.value is None) == bool(decoded.errors)


@pytest.mark.parametrize("type_url", TYPE_URLS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_resources_never_raise_and_decode_the_same_twice(type_url: str, seed: int) -> None:
    body = Builder(seed).build(type_url.rpartition("/")[2]).SerializeToString()
    decoded = decode_resource(type_url, body)
    assert (decoded.value is None) == bool(decoded.errors)
    assert decode_resource(type_url, body) == decoded


def test_every_message_type_of_the_pool_can_be_looked_up() -> None:
    for name in PACKED:
        assert pool().FindMessageTypeByName(name).full_name == name
