"""The private pool says what xds-protos says, and lives beside other generated code in one process.

Each proof runs in a process of its own, because generated modules register themselves for the whole process.
"""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DESCRIPTORS = ROOT / "meshlib" / "protos" / "descriptors.bin"


def run(python: str | Path, code: str, *, cwd: Path) -> bytes:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([python, "-c", code], cwd=cwd, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_the_file_equals_what_the_pinned_package_says(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r})\nimport build_protos\nsys.stdout.buffer.write(build_protos.build())"
    assert DESCRIPTORS.read_bytes() == run(sys.executable, code, cwd=tmp_path)


def test_messages_of_the_users_own_generated_classes_are_accepted(tmp_path):
    code = """
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2

from meshlib.protos import from_any, message_class, to_any
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import CDS

ads = config_source_pb2.ConfigSource(ads=config_source_pb2.AggregatedConfigSource())
theirs = cluster_pb2.Cluster(
    name="checkout",
    type=cluster_pb2.Cluster.EDS,
    eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=ads, service_name="endpoints"),
)
packed = to_any(theirs)
assert packed.type_url == CDS
ours = from_any(packed)
assert type(ours) is message_class("envoy.config.cluster.v3.Cluster")
assert type(ours) is not type(theirs)
assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)

# A message of theirs may also be packed by their own Any.
from google.protobuf.any_pb2 import Any
box = Any()
box.Pack(theirs)
assert from_any(box) == ours

decoded = decode_resource(CDS, theirs.SerializeToString())
assert decoded.errors == ()
print(decoded.value.name, decoded.value.discovery.service_name)
"""
    assert run(sys.executable, code, cwd=tmp_path).split() == [b"checkout", b"endpoints"]


def test_the_pool_is_not_the_default_one(tmp_path):
    code = """
from google.protobuf import descriptor_pool
from meshlib.protos import message_class, pool
message_class("envoy.config.cluster.v3.Cluster")
try:
    descriptor_pool.Default().FindMessageTypeByName("envoy.config.cluster.v3.Cluster")
except KeyError:
    print(pool() is descriptor_pool.Default())
"""
    assert run(sys.executable, code, cwd=tmp_path).split() == [b"False"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_otlp_exporter_works_beside_us(tmp_path):
    """Where xds-protos is not installed, which is what the wheel leaves: its modules break the exporter's imports."""
    environment = tmp_path / "venv"
    venv.create(environment)
    python = environment / "bin" / "python"
    # By our own pip, and without compiling what is never imported: half of the time otherwise.
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    packages = [str(ROOT), "opentelemetry-exporter-otlp-proto-grpc"]
    subprocess.run([*pip, "install", "--quiet", "--no-compile", *packages], check=True, cwd=tmp_path)
    code = """
from meshlib.protos import message_class, to_any
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import EDS

message = message_class("envoy.config.endpoint.v3.ClusterLoadAssignment")(cluster_name="checkout")
assert decode_resource(EDS, to_any(message).value).value.name == "checkout"

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

memory = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(memory))
with provider.get_tracer("test").start_as_current_span("call"):
    pass
request = encode_spans(memory.get_finished_spans())
span = type(request).FromString(request.SerializeToString()).resource_spans[0].scope_spans[0].spans[0]
OTLPSpanExporter(insecure=True).shutdown()
print(span.name)
"""
    assert run(python, code, cwd=tmp_path).split() == [b"call"]
