"""Compile the xDS message descriptors of the pinned `xds-protos` into one data file.

Run by `make protos`. The file is committed; a test proves that it equals what the pinned package says.
"""

import importlib
import pkgutil
import sys
import zlib
from pathlib import Path

from google.protobuf import descriptor_pb2

ROOTS = (
    "envoy.config",
    "envoy.extensions",
    "envoy.service",
    "envoy.type",
    "envoy.data",
    "envoy.admin",
    "xds",
    "udpa",
    "validate",
)
TARGET = Path(__file__).resolve().parent.parent / "meshlib" / "protos" / "descriptors.bin"


def _import_all(package: str) -> None:
    module = importlib.import_module(package)
    for info in pkgutil.walk_packages(module.__path__, package + "."):
        if info.name.endswith("_pb2"):
            importlib.import_module(info.name)


def _random_subsetting() -> descriptor_pb2.FileDescriptorProto:
    """Return the message of gRFC A68, which `xds-protos` does not have yet."""
    package = "envoy.extensions.load_balancing_policies.random_subsetting.v3"
    cluster = "envoy/config/cluster/v3/cluster.proto"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package.replace('.', '/')}/random_subsetting.proto",
        package=package,
        dependency=[cluster],
        syntax="proto3",
    )
    message = file.message_type.add(name="RandomSubsetting")
    kinds = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="subset_size", number=1, type=kinds.TYPE_UINT32, label=kinds.LABEL_OPTIONAL)
    message.field.add(
        name="child_policy",
        number=2,
        type=kinds.TYPE_MESSAGE,
        type_name=".envoy.config.cluster.v3.LoadBalancingPolicy",
        label=kinds.LABEL_OPTIONAL,
    )
    return file


def _peak_ewma() -> descriptor_pb2.FileDescriptorProto:
    """Return the message of Envoy's contributed extension, which `xds-protos` does not have."""
    package = "envoy.extensions.load_balancing_policies.peak_ewma.v3alpha"
    dependency = ["google/protobuf/duration.proto", "google/protobuf/wrappers.proto"]
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package.replace('.', '/')}/peak_ewma.proto", package=package, dependency=dependency, syntax="proto3"
    )
    message = file.message_type.add(name="PeakEwma")
    kinds = descriptor_pb2.FieldDescriptorProto
    fields = (
        ("decay_time", "Duration"),
        ("aggregation_interval", "Duration"),
        ("max_samples_per_host", "UInt32Value"),
        ("default_rtt", "Duration"),
        ("penalty_value", "DoubleValue"),
    )
    for number, (name, kind) in enumerate(fields, 1):
        message.field.add(
            name=name,
            number=number,
            type=kinds.TYPE_MESSAGE,
            type_name=f".google.protobuf.{kind}",
            label=kinds.LABEL_OPTIONAL,
        )
    return file


def build() -> bytes:
    """Return the descriptors' files and an index of them, compressed with zlib, in a stable order.

    The index comes first: its length as four bytes, big-endian, then a line for each file with tabs between its length,
    the numbers of the lines of those that it imports, its package, and the names at its top level. The bytes of the files
    follow in the same order.
    """
    for root in ROOTS:
        _import_all(root)
    importlib.import_module("google.rpc.error_details_pb2")
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def add(descriptor: object) -> None:
        name = descriptor.name  # type: ignore[attr-defined]
        if name in files:
            return
        for dependency in descriptor.dependencies:  # type: ignore[attr-defined]
            add(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        descriptor.CopyToProto(proto)  # type: ignore[attr-defined]
        files[name] = proto

    wanted = tuple(root.replace(".", "/") + "/" for root in ROOTS)
    for name in sorted(sys.modules):
        descriptor = getattr(sys.modules[name], "DESCRIPTOR", None)
        path = getattr(descriptor, "name", "")
        if isinstance(path, str) and (path.startswith(wanted) or path == "google/rpc/error_details.proto"):
            add(descriptor)
    for extra in (_random_subsetting(), _peak_ewma()):
        files.setdefault(extra.name, extra)
    lines, bodies = [], []
    numbers = {name: str(number) for number, name in enumerate(files)}
    for file in files.values():
        bodies.append(file.SerializeToString(deterministic=True))
        kinds = (file.message_type, file.enum_type, file.extension, file.service)
        symbols = [one.name for kind in kinds for one in kind]
        imported = " ".join(numbers[name] for name in file.dependency)
        lines.append("\t".join([str(len(bodies[-1])), imported, file.package, *symbols]))
    index = "\n".join(lines).encode()
    return zlib.compress(len(index).to_bytes(4, "big") + index + b"".join(bodies), 9)


if __name__ == "__main__":
    TARGET.write_bytes(build())
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")
