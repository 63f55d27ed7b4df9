"""What the decoders do with the fields of small messages: those that other messages hold, and that have no table of their own.

Each message is found in the rich resources of `xds_corpus.py`, whatever is packed opened. Each of its fields is then
given several values and taken away, and the resource decoded: what the value that comes out of it, the errors and the
remarks say decides the field's state. A field that changes nothing and of which nothing is said would be ignored in
silence, and is an error of this tool.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from xds_corpus import SAMPLES, resources
from xds_notes import IN_PART, NOT_LOOKED_INTO

from meshlib.protos import from_any, from_dict, message_class
from meshlib.xds.decode import Decoded, decode_resource

__all__ = ["Small", "small_messages"]

HONOURED, NO_EFFECT, REFUSED = "Honoured", "No effect", "Refused"
CHECKED, SILENT = "only checked", "ignored in silence"
"""What no field may be: only its values are checked, as far as can be seen; nothing is."""
_ANY: Final = "google.protobuf.Any"
_OPAQUE: Final = "google.protobuf."
_TEXTS: Final = ("x", "h2", "a=b", "00", "3s", "/x")
_NUMBERS: Final = (1, 2, 3, 7, 13, 100, 700)

MOST_PLACES: Final = 4
"""In a context, that are tried; what would be seen in others only needs a sample of its own."""

Step = tuple[str, Any]
"""A field, and the index or key in it; None: it is a single message."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A resource of the corpus.

    Attributes:
        facts: All that its decoded form says.
    """

    type_url: str
    message: Any
    decoded: Decoded
    facts: Any


@dataclass(frozen=True, slots=True)
class Place:
    """Attributes:
    resource: Number in the corpus.
    steps: From the resource to the message.
    context: Message and field that it is in.
    """

    resource: int
    steps: tuple[Step, ...]
    context: str


@dataclass(slots=True)
class Small:
    """A small message.

    Attributes:
        states: By field, in the order of the proto.
    """

    kind: str
    places: list[Place] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)


def small_messages(known: frozenset[str]) -> list[Small]:
    """Return the messages that are not known to have a table, by name, with their fields' states.

    Raises:
        AssertionError: Something of them would be ignored in silence, or cannot be told: mend the decoder, or put a
            better sample into the corpus, or say in `xds_notes.py` what it is.
    """
    corpus = [_sample(url, from_dict(url.rpartition("/")[2], resource)) for url, resource in resources()]
    found: dict[str, Small] = {}
    for number, sample in enumerate(corpus):
        for inner, steps, context in _walk(sample.message, (), ""):
            name = inner.DESCRIPTOR.full_name
            if name not in known and not name.startswith(_OPAQUE):
                found.setdefault(name, Small(name)).places.append(Place(number, steps, context))
    for small in found.values():
        for one in message_class(small.kind).DESCRIPTOR.fields:
            if (small.kind, one.name) not in IN_PART:
                small.states[one.name] = _state(corpus, small, one)
    _settle(found, known)
    return [found[name] for name in sorted(found)]


def _settle(found: dict[str, Small], known: frozenset[str]) -> None:
    """A field whose message has to be there is honoured when something in that message is."""
    read = set(known)
    while True:
        more = {
            name
            for name, small in found.items()
            if HONOURED in small.states.values() or any(kind == name for kind, _ in IN_PART)
        } - read
        if not more:
            break
        read |= more
        for small in found.values():
            for one in message_class(small.kind).DESCRIPTOR.fields:
                if small.states.get(one.name) == CHECKED and one.message_type and one.message_type.full_name in read:
                    small.states[one.name] = HONOURED
    wrong = [
        f"{small.kind}.{name}: {state}"
        for small in found.values()
        for name, state in small.states.items()
        if state not in (HONOURED, NO_EFFECT, REFUSED)
    ]
    assert not wrong, "\n".join(wrong)


def _sample(url: str, message: Any) -> Sample:
    decoded = _decode(url, message)
    assert not decoded.errors, (url, decoded.errors)
    return Sample(url, message, decoded, _facts(decoded.value))


def _decode(url: str, message: Any) -> Decoded:
    return decode_resource(url, message.SerializeToString(deterministic=True))


def _walk(message: Any, steps: tuple[Step, ...], context: str) -> Iterator[tuple[Any, tuple[Step, ...], str]]:
    """Yield the messages inside of a message."""
    if message.DESCRIPTOR.full_name == _ANY:
        message = from_any(message)
    yield message, steps, context
    for one, value in message.ListFields():
        if one.message_type is None:
            continue
        inside = f"{message.DESCRIPTOR.full_name}.{one.name}"
        if inside in NOT_LOOKED_INTO:
            continue
        if one.message_type.GetOptions().map_entry:
            if one.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    yield from _walk(value[key], (*steps, (one.name, key)), inside)
        elif one.is_repeated:
            for index, item in enumerate(value):
                yield from _walk(item, (*steps, (one.name, index)), inside)
        else:
            yield from _walk(value, (*steps, (one.name, None)), inside)


def _changed(message: Any, steps: tuple[Step, ...], change: Callable[[Any], None]) -> Any:
    """Return a copy in which the message at the end of the steps is changed."""
    copy = type(message).FromString(message.SerializeToString())
    _change(copy, steps, change)
    return copy


def _change(message: Any, steps: tuple[Step, ...], change: Callable[[Any], None]) -> None:
    if message.DESCRIPTOR.full_name == _ANY:
        inner = from_any(message)
        _change(inner, steps, change)
        message.value = inner.SerializeToString(deterministic=True)
    elif not steps:
        change(message)
    else:
        (name, key), *rest = steps
        below = getattr(message, name)
        _change(below if key is None else below[key], tuple(rest), change)


def _state(corpus: list[Sample], small: Small, one: FieldDescriptor) -> str:
    """Return what becomes of a field wherever its message stands; silence in one place is silence."""
    states = set()
    for context in dict.fromkeys(place.context for place in small.places):
        places = [place for place in small.places if place.context == context]
        states.add(_state_at(corpus, small, places, one))
    if SILENT in states or len(states - {CHECKED}) < 2:
        return next(state for state in (SILENT, HONOURED, REFUSED, NO_EFFECT, CHECKED) if state in states)
    return f"not everywhere the same: {', '.join(sorted(states - {CHECKED}))}"


def _state_at(corpus: list[Sample], small: Small, places: list[Place], one: FieldDescriptor) -> str:
    verdicts = set()
    for place in places[:MOST_PLACES]:
        sample = corpus[place.resource]
        for change in (*_changes(one), *_samples(small, one)):
            made = _decode(sample.type_url, _changed(sample.message, place.steps, change))
            verdicts.add(_verdict(sample, made, one.name))
            if HONOURED in verdicts:
                return HONOURED
    return next(state for state in (REFUSED, NO_EFFECT, CHECKED, SILENT) if state in verdicts)


def _verdict(before: Sample, after: Decoded, name: str) -> str:
    if after.errors:
        refused = any(
            is_about(path, name) and "not supported" in reason
            for path, _, reason in (error.partition(": ") for error in after.errors)
        )
        return REFUSED if refused else CHECKED
    if after.value != before.decoded.value or _facts(after.value) != before.facts:
        return HONOURED
    remarks = {*after.unused} ^ {*before.decoded.unused}
    return NO_EFFECT if any(is_about(remark.partition(": ")[0], name) for remark in remarks) else SILENT


def _facts(value: Any) -> Any:
    """Return all that a value of the model says: two that are equal may differ in what does not count when they are compared."""
    if is_dataclass(value):
        return (type(value), *(_facts(getattr(value, one.name)) for one in fields(value)))
    if isinstance(value, Mapping):
        return {key: _facts(inner) for key, inner in value.items()}
    return tuple(_facts(inner) for inner in value) if isinstance(value, tuple | list) else value


def is_about(path: str, name: str) -> bool:
    """Whether a field path is that of a field, or of an item of it."""
    return path.rpartition(".")[2].partition("[")[0] == name


def _changes(one: FieldDescriptor) -> Iterator[Callable[[Any], None]]:
    """Yield ways to change a field of a message."""
    yield lambda message: message.ClearField(one.name)
    if one.message_type is not None and one.message_type.GetOptions().map_entry:
        if one.message_type.fields_by_name["value"].message_type is not None:
            yield lambda message: getattr(message, one.name)["k"].SetInParent()
        return
    if one.is_repeated:
        if one.message_type is not None:
            yield lambda message: getattr(message, one.name).add()
            yield lambda message: getattr(message, one.name).extend(getattr(message, one.name)[:1])
        else:
            for value in _values(one):
                yield lambda message, value=value: getattr(message, one.name).append(value)
    elif one.message_type is None:
        for value in _values(one):
            yield lambda message, value=value: setattr(message, one.name, value)
    else:
        yield lambda message: _cleared(message, one.name)
        kind = one.message_type
        if kind.full_name == "google.protobuf.Duration":
            yield lambda message: getattr(message, one.name).FromSeconds(1)
            yield lambda message: getattr(message, one.name).FromSeconds(3)
        elif kind.full_name.startswith(_OPAQUE) and "value" in kind.fields_by_name and kind.full_name != _ANY:
            inner = kind.fields_by_name["value"]
            for value in _values(inner) if inner.message_type is None else ():
                yield lambda message, value=value: setattr(getattr(message, one.name), "value", value)
        elif kind.full_name == "google.protobuf.Struct":
            yield lambda message: getattr(message, one.name).update({"k": "v"})


def _samples(small: Small, one: FieldDescriptor) -> Iterator[Callable[[Any], None]]:
    if (sample := SAMPLES.get((small.kind, one.name))) is not None:

        def change(message: Any) -> None:
            message.ClearField(one.name)
            message.MergeFrom(from_dict(small.kind, sample))

        yield change


def _cleared(message: Any, name: str) -> None:
    message.ClearField(name)
    getattr(message, name).SetInParent()


def _values(one: FieldDescriptor) -> tuple[Any, ...]:
    match one.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return tuple(text.encode() for text in _TEXTS) if one.type == FieldDescriptor.TYPE_BYTES else _TEXTS
        case FieldDescriptor.CPPTYPE_BOOL:
            return (True, False)
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return (1.0, 3.0, 60.0)
        case FieldDescriptor.CPPTYPE_ENUM:
            return tuple(value.number for value in one.enum_type.values)
        case _:
            return _NUMBERS
