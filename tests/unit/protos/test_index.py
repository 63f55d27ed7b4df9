"""What is looked up in the pool is added to it, with what it needs."""

import json
import subprocess
import sys
import threading

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from meshlib.protos import message_class, pool
from meshlib.protos.index import LazyPool


def small() -> LazyPool:
    """Two files of two packages, of which one is the beginning of the other; the second imports the first."""
    first, second = FileDescriptorProto(name="b.proto", package="envoy.a"), FileDescriptorProto(name="a.proto")
    first.message_type.add(name="Other")
    second.package = "envoy.a.v3"
    second.dependency.append("b.proto")
    one = second.message_type.add(name="One")
    one.nested_type.add(name="Inner").nested_type.add(name="Deep")
    one.field.add(name="other", number=1, type=11, label=1, type_name=".envoy.a.Other")
    second.service.add(name="Serves")
    bodies = [file.SerializeToString() for file in (first, second)]
    rules = b'One\t{"oneofs":[]}\nOne.Inner\t{"fields":{}}\n'
    lines = (f"{len(bodies[0])}\t0\t\tenvoy.a\tOther", f"{len(bodies[1])}\t{len(rules)}\t0\tenvoy.a.v3\tOne\tServes")
    index = "\n".join(lines).encode()
    return LazyPool(len(index).to_bytes(4, "big") + index + b"".join(bodies) + rules)


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("envoy.a.v3.One", "a.proto"),
        ("envoy.a.v3.One.Inner", "a.proto"),
        ("envoy.a.v3.One.Inner.Deep", "a.proto"),
        ("envoy.a.Other", "b.proto"),
    ],
)
def test_a_message_is_found_with_what_it_needs(symbol, file):
    assert file == small().FindMessageTypeByName(symbol).file.name


def test_only_what_is_looked_up_is_added():
    made = small()
    inner = made.FindMessageTypeByName("envoy.a.Other").file.pool
    with pytest.raises(KeyError):
        inner.FindFileByName("a.proto")
    made.FindServiceByName("envoy.a.v3.Serves")
    assert "a.proto" == inner.FindFileByName("a.proto").name


@pytest.mark.parametrize(
    "symbol", ["", "One", "envoy.a.v3", "envoy.a.v3.", "envoy.a.v3.Two", "envoy.a.v4.One", "a.One"]
)
def test_what_is_nowhere_is_not_found(symbol):
    with pytest.raises(KeyError):
        small().FindMessageTypeByName(symbol)
    with pytest.raises(KeyError):
        small().FindExtensionByName(symbol)
    with pytest.raises(KeyError):
        small().FindServiceByName(symbol)


def test_all_that_the_index_names_is_there():
    full = pool.__wrapped__()
    inner = full.FindMessageTypeByName("google.protobuf.Any").file.pool
    files = set()
    for symbol in full.symbols:
        full._add_for(symbol)
        file = inner.FindFileContainingSymbol(symbol)
        assert file.package == symbol.rpartition(".")[0]
        files.add(file.name)
    assert 600 < len(files)


def test_what_is_within_a_message_and_what_extends_one_is_found():
    for name in ("envoy.config.cluster.v3.Cluster.CommonLbConfig", "google.rpc.ErrorInfo", "validate.FieldRules"):
        assert name == message_class(name).DESCRIPTOR.full_name
    assert "validate.rules" == pool().FindExtensionByName("validate.rules").full_name
    assert pool().FindServiceByName("envoy.service.discovery.v3.AggregatedDiscoveryService").methods


def test_threads_may_look_up_the_same_at_the_same_time():
    """Each time in a pool that knows nothing yet, with the interpreter taking turns all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            fresh = pool.__wrapped__()
            found, start = [], threading.Barrier(4)

            def look(fresh=fresh, found=found, start=start) -> None:
                start.wait()
                found.append(fresh.FindMessageTypeByName("envoy.config.cluster.v3.Cluster"))

            threads = [threading.Thread(target=look) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert 4 == len(found)
            assert all(one is found[0] for one in found)
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize(
    ("symbol", "rules"),
    [
        ("envoy.a.v3.One", '{"oneofs":[]}'),
        ("envoy.a.v3.One.Inner", '{"fields":{}}'),
        ("envoy.a.v3.One.Inner.Deep", ""),
        ("envoy.a.v3.On", ""),
        ("envoy.a.Other", ""),
        ("nowhere.One", ""),
    ],
)
def test_rules_are_found_by_the_whole_name(symbol, rules):
    assert rules == small().rules_of(symbol)


def test_rules_are_not_held_twice():
    name = "envoy.config.cluster.v3.Cluster"
    found = json.loads(pool().rules_of(name))
    assert {"name", "connect_timeout"} < found["fields"].keys()
    assert False is found["children"]["circuit_breakers"]
    assert {"typed_extension_protocol_options"}.isdisjoint(found["children"])  # `Any` is checked where it is unpacked
    for field in pool().FindMessageTypeByName(name).fields:
        options = message_class("google.protobuf.FieldOptions").FromString(field.GetOptions().SerializeToString())
        assert not options.HasExtension(pool().FindExtensionByName("validate.rules"))
    # What else stands there stays: what is not to be shown depends on it.
    secret = pool().FindMessageTypeByName("envoy.extensions.transport_sockets.tls.v3.TlsCertificate")
    assert secret.fields_by_name["private_key"].has_options


def test_starting_needs_no_descriptors_of_descriptors():
    code = """
import sys
from meshlib.protos import message_class
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import CDS, EDS, LDS, RDS
for kind in (LDS, RDS, CDS, EDS):
    decode_resource(kind, b"")
print("google.protobuf.descriptor_pb2" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "False" == done.stdout.strip()
