"""Write the tables of docs/reference/xds-features.md by asking the decoders. Run by `make docs`.

For each field of each message, a small valid resource (`xds_samples.py`) is made in which that field is set, and decoded:
a complaint that it is not supported makes it refused, a remark that it has no effect makes it unused, anything else
honoured; `xds_notes.py` has the fields of which that would not be the whole truth.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from xds_notes import IN_PART
from xds_samples import SECTIONS, Inside, Place

from meshlib.xds.decode import decode_resource

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference" / "xds-features.md"
BEGIN, END = "<!-- fields: made by tools/build_xds_features.py -->", "<!-- end of fields -->"


def set_field(message: Any, field: Any) -> None:
    """Give a field a value that is not its default. Messages stay empty."""
    name = field.name
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    if is_map:
        value = field.message_type.fields_by_name["value"]
        holder = getattr(message, name)
        if value.message_type is None:
            holder["x"] = "x"
        else:
            holder["x"].SetInParent()
    elif field.is_repeated:
        holder = getattr(message, name)
        holder.add() if field.message_type is not None else holder.append(sample(field))
    elif field.message_type is None:
        setattr(message, name, sample(field))
    else:
        inner = getattr(message, name)
        inner.SetInParent()
        if field.message_type.full_name == "google.protobuf.Duration":
            inner.seconds = 1
        elif (
            field.message_type.full_name.startswith("google.protobuf.") and "value" in field.message_type.fields_by_name
        ):
            wrapped = field.message_type.fields_by_name["value"]
            if wrapped.message_type is None:
                inner.value = sample(wrapped)


def sample(field: Any) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return b"x" if field.type == FieldDescriptor.TYPE_BYTES else "x"
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return 1.0
        case _:
            return 1


def verdict(type_url: str, make: Callable[[], Any], find: Place | None, name: str) -> str:
    """Return what the decoder says about a field."""
    made = make()
    message = made.message if isinstance(made, Inside) else find(made) if find else made
    set_field(message, message.DESCRIPTOR.fields_by_name[name])
    resource = made.finish() if isinstance(made, Inside) else made
    decoded = decode_resource(type_url, resource.SerializeToString())
    for error in decoded.errors:
        path, _, reason = error.partition(": ")
        if "not supported" in reason and mentions(path, name):
            return "Refused"
    if any(mentions(note.partition(": ")[0], name) for note in decoded.unused):
        return "No effect"
    return "Honoured"


def mentions(path: str, name: str) -> bool:
    """Whether a field path ends in a field, or in an item of it."""
    return path.rpartition(".")[2].partition("[")[0] == name or f".{name}[" in path or path.startswith(f"{name}[")


def tables() -> str:
    """Return the section of the page that the decoders write."""
    lines = []
    for title, (type_url, make, find) in SECTIONS.items():
        made = make()
        message = made.message if isinstance(made, Inside) else find(made) if find else made
        found: dict[str, list[str]] = {"Honoured": [], "In part": [], "No effect": [], "Refused": []}
        for field in message.DESCRIPTOR.fields:
            if note := IN_PART.get((title, field.name)):
                found["In part"].append(f"`{field.name}` ({note})")
            else:
                found[verdict(type_url, make, find, field.name)].append(f"`{field.name}`")
        lines += ["", f"### {title}", "", "| | |", "| --- | --- |"]
        lines += [f"| {word} | {', '.join(names)} |" for word, names in found.items() if names]
    return "\n".join(lines)


def page() -> str:
    """Return the page with its tables up to date; the rest is written by hand."""
    before, _, rest = TARGET.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    TARGET.write_text(page())
