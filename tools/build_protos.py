"""Compile the xDS message descriptors of the pinned `xds-protos` into one data file.

Run by `make protos`. The file is committed; a test proves that it equals what the pinned package says.
"""

import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

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


WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)


class Rules:
    """The `(validate.rules)` of messages, looked up once for all processes: in each it would take 6 ms of its start."""

    def __init__(self) -> None:
        self._validate: Any = importlib.import_module("validate.validate_pb2")
        self._has_any: dict[str, bool] = {}

    def of(self, message: Descriptor) -> dict[str, Any]:
        """Return what `meshlib.xds.constraints` is to look at in messages of a type; without what there is none of.

        Returns:
            `oneofs` of which a member is required, with their members' names; serialised `FieldRules` of `fields`, as
            hexadecimals, and which of those are `maps`; `children`, the fields whose messages have rules of their own or
            below, with whether they are maps.
        """
        oneofs = [[one.name, ", ".join(field.name for field in one.fields)] for one in self._required(message)]
        fields, maps, children = {}, [], {}
        for field in message.fields:
            rules = self._rules(field)
            if rules is not None:
                fields[field.name] = rules.SerializeToString(deterministic=True).hex()
                maps += [field.name] if _is_map(field) else []
            child = _message_of(field)
            if child is not None and self._has_rules(child) and not (rules is not None and rules.message.skip):
                children[field.name] = _is_map(field)
        found = {"oneofs": oneofs, "fields": fields, "maps": maps, "children": children}
        return {name: value for name, value in found.items() if value}

    def lines(self, file: Any) -> Iterator[str]:
        """Give those of all messages of a file that have any: name within the package, tab, JSON."""
        left = list(file.message_types_by_name.values())
        while left:
            message = left.pop(0)
            left += message.nested_types
            found = {} if message.GetOptions().map_entry else self.of(message)
            if found:
                yield f"{message.full_name[len(file.package) + 1 :]}\t{json.dumps(found, separators=(',', ':'))}\n"

    def take_out(self, message: descriptor_pb2.DescriptorProto) -> None:
        """Take them out of a descriptor, which would only hold them a second time."""
        stated: list[tuple[Any, Any]] = [(field, self._validate.rules) for field in message.field]
        stated += [(oneof, self._validate.required) for oneof in message.oneof_decl]
        for part, extension in stated:
            part.options.ClearExtension(extension)
            if not part.options.ListFields():
                part.ClearField("options")
        for nested in message.nested_type:
            self.take_out(nested)

    def _rules(self, field: FieldDescriptor) -> Any:
        options, rules = field.GetOptions(), self._validate.rules
        return options.Extensions[rules] if options.HasExtension(rules) else None

    def _required(self, message: Descriptor) -> list[Any]:
        return [oneof for oneof in message.oneofs if oneof.GetOptions().Extensions[self._validate.required]]

    def _has_rules(self, message: Descriptor) -> bool:
        """Whether a message of this type or anything below it can break a rule; types refer to each other in circles."""
        known = self._has_any.get(message.full_name)
        if known is None:
            seen, left, known = {message.full_name}, [message], False
            while left and not known:
                found = left.pop()
                known = bool(self._required(found)) or any(self._rules(field) is not None for field in found.fields)
                for child in filter(None, map(_message_of, found.fields)):
                    if child.full_name not in seen:
                        seen.add(child.full_name)
                        left.append(child)
            self._has_any[message.full_name] = known
        return known


def _message_of(field: FieldDescriptor) -> Descriptor | None:
    """Return the type to descend into: of a map its values'."""
    child = field.message_type
    if child is not None and _is_map(field):
        child = child.fields_by_name["value"].message_type
    return None if child is None or child.full_name in WRAPPERS else child


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def build() -> bytes:
    """Return the descriptors' files, the rules of their messages, and an index of them, in a stable order.

    The index comes first: its length as four bytes, big-endian, then a line for each file with tabs between the length of its
    descriptor, that of its rules, the numbers of the lines of those that it imports, its package, and the names at its top
    level. Descriptor and rules of the files follow in the same order. Nothing is compressed: a process needs a tenth of it.
    """
    for root in ROOTS:
        _import_all(root)
    importlib.import_module("google.rpc.error_details_pb2")
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    rules, ruled = Rules(), {}

    def add(descriptor: Any) -> None:
        name = descriptor.name
        if name in files:
            return
        for dependency in descriptor.dependencies:
            add(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        descriptor.CopyToProto(proto)
        for message in proto.message_type:
            rules.take_out(message)
        files[name], ruled[name] = proto, "".join(rules.lines(descriptor)).encode()

    wanted = tuple(root.replace(".", "/") + "/" for root in ROOTS)
    for name in sorted(sys.modules):
        descriptor = getattr(sys.modules[name], "DESCRIPTOR", None)
        path = getattr(descriptor, "name", "")
        if isinstance(path, str) and (path.startswith(wanted) or path == "google/rpc/error_details.proto"):
            add(descriptor)
    known = descriptor_pool.Default()
    for extra in (_random_subsetting(), _peak_ewma()):
        if extra.name not in files:
            known.AddSerializedFile(extra.SerializeToString())
            add(known.FindFileByName(extra.name))
    lines: list[str] = []
    bodies: list[bytes] = []
    numbers = {name: str(number) for number, name in enumerate(files)}
    for name, file in files.items():
        parts = file.SerializeToString(deterministic=True), ruled[name]
        bodies += parts
        kinds = (file.message_type, file.enum_type, file.extension, file.service)
        symbols = [one.name for kind in kinds for one in kind]
        imported = " ".join(numbers[name] for name in file.dependency)
        lines.append("\t".join([*(str(len(part)) for part in parts), imported, file.package, *symbols]))
    index = "\n".join(lines).encode()
    return len(index).to_bytes(4, "big") + index + b"".join(bodies)


if __name__ == "__main__":
    TARGET.write_bytes(build())
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")
