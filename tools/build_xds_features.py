"""Write the tables of docs/reference/xds-features.md by asking the decoders. Run by `make docs`.

For each field of each message, a small valid resource (`xds_samples.py`) is made in which that field is set, and decoded:
a complaint that it is not supported makes it refused, a remark that it has no effect makes it unused, anything else
honoured; `xds_notes.py` has the fields of which that would not be the whole truth.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from xds_notes import IN_PART, NOT_LOOKED_INTO, WHY
from xds_samples import SECTIONS, Inside, Place
from xds_small import small_messages

from meshlib.protos import message_class
from meshlib.xds.decode import decode_resource

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference" / "xds-features.md"
BEGIN, END = "<!-- fields: made by tools/build_xds_features.py -->", "<!-- end of fields -->"


HONOURED, IN_PART_STATE, NO_EFFECT, REFUSED = STATES = ("Honoured", "In part", "No effect", "Refused")
SMALL = """\
What the messages above hold, by their full names without `envoy.`. Of a field that has no effect the message inside has no
row. Where a message stands in several places, it is said when they differ."""


@dataclass(frozen=True, slots=True)
class Section:
    """A message on the page.

    Attributes:
        title: Of its table, by which `xds_notes.py` speaks of it.
        kind: Its full name.
        states: By field, in the order of the proto.
    """

    title: str
    kind: str
    states: Mapping[str, str]


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
    message = message_of(made, find)
    set_field(message, message.DESCRIPTOR.fields_by_name[name])
    resource = made.finish() if isinstance(made, Inside) else made
    decoded = decode_resource(type_url, resource.SerializeToString())
    for error in decoded.errors:
        path, _, reason = error.partition(": ")
        if "not supported" in reason and mentions(path, name):
            return REFUSED
    if any(mentions(note.partition(": ")[0], name) for note in decoded.unused):
        return NO_EFFECT
    return HONOURED


def mentions(path: str, name: str) -> bool:
    """Whether a field path ends in a field, or in an item of it."""
    return path.rpartition(".")[2].partition("[")[0] == name or f".{name}[" in path or path.startswith(f"{name}[")


def message_of(made: Any, find: Place | None) -> Any:
    return made.message if isinstance(made, Inside) else find(made) if find else made


def sections() -> Iterator[Section]:
    """Yield the messages that have a table of their own."""
    for title, (type_url, make, find) in SECTIONS.items():
        descriptor = message_of(make(), find).DESCRIPTOR
        states = {
            field.name: IN_PART_STATE if (title, field.name) in IN_PART else verdict(type_url, make, find, field.name)
            for field in descriptor.fields
        }
        yield Section(title, descriptor.full_name, states)


@cache
def all_sections() -> tuple[tuple[Section, ...], tuple[Section, ...]]:
    """Return the messages with tables of their own, and the small ones, whose titles are their full names."""
    large = tuple(sections())
    small = tuple(
        Section(
            one.kind,
            one.kind,
            {
                field.name: one.states.get(field.name, IN_PART_STATE)
                for field in message_class(one.kind).DESCRIPTOR.fields
            },
        )
        for one in small_messages(frozenset(section.kind for section in large))
    )
    check_complete((*large, *small))
    return large, small


def field_states() -> dict[tuple[str, str], set[str]]:
    """Return what the page says of each field of each message, by full names; some messages stand in several places."""
    found: dict[tuple[str, str], set[str]] = {}
    for section in (*all_sections()[0], *all_sections()[1]):
        for name, state in section.states.items():
            found.setdefault((section.kind, name), set()).add(state)
    return found


def check_complete(tabled: Iterable[Section]) -> None:
    """Check that what a field holds has a table if the field is read.

    Raises:
        AssertionError: A message has none: put it into `xds_corpus.py`.
    """
    tabled = tuple(tabled)
    known = {section.kind for section in tabled}
    missing = {
        f"{held.full_name}, in {section.kind}.{name}"
        for section in tabled
        for name, state in section.states.items()
        if state in (HONOURED, IN_PART_STATE)
        and f"{section.kind}.{name}" not in NOT_LOOKED_INTO
        and (held := held_by(message_class(section.kind).DESCRIPTOR.fields_by_name[name])) is not None
        and held.full_name not in known
    }
    assert not missing, "\n".join(sorted(missing))


def held_by(field: Any) -> Any:
    """Return the type of the message that a field holds; None: it holds none, or one of protobuf's own."""
    held = field.message_type
    if held is not None and held.GetOptions().map_entry:
        held = held.fields_by_name["value"].message_type
    return None if held is None or held.full_name.startswith("google.protobuf.") else held


def grouped(section: Section) -> dict[str, list[str]]:
    """Return the fields by state, as the page writes them."""
    found: dict[str, list[str]] = {state: [] for state in STATES}
    for name, state in section.states.items():
        note = f" ({IN_PART[section.title, name]})" if state == IN_PART_STATE else ""
        found[state].append(f"`{name}`{note}")
    return found


def tables() -> str:
    """Return the section of the page that the decoders write."""
    large, small = all_sections()
    lines = []
    for section in large:
        lines += ["", f"### {section.title}", "", "| | |", "| --- | --- |"]
        lines += [f"| {word} | {', '.join(names)} |" for word, names in grouped(section).items() if names]
    return "\n".join([*lines, *small_tables(small)])


def small_tables(small: Iterable[Section]) -> Iterator[str]:
    """Yield the lines about small messages: one table, and the list of those that are honoured as a whole."""
    yield from ("", "### Small messages", "", SMALL, "")
    yield from ("| Message | Honoured | In part | No effect | Refused | Why |", "| --- | --- | --- | --- | --- | --- |")
    whole = []
    for section in small:
        name = section.kind.removeprefix("envoy.")
        if set(section.states.values()) <= {HONOURED}:
            whole.append(f"`{name}`")
        else:
            needs_reason = bool({NO_EFFECT, REFUSED} & set(section.states.values()))
            assert needs_reason == (section.kind in WHY), f"xds_notes.WHY: {section.kind}"
            cells = [", ".join(grouped(section)[state]) for state in STATES]
            yield " | ".join([f"| `{name}`", *cells, f"{WHY.get(section.kind, '')} |"])
    yield from ("", f"Honoured as a whole: {', '.join(whole)}.")


def page() -> str:
    """Return the page with its tables up to date; the rest is written by hand."""
    before, _, rest = TARGET.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    TARGET.write_text(page())
