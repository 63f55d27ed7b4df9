"""The tool that writes the features page does not believe a decoder that says nothing."""

from importlib import import_module
from pathlib import Path

import pytest

from meshlib.xds import decode_cluster_http, decode_common

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SETTINGS = "envoy.config.core.v3.Http2ProtocolOptions"
SOURCE = "envoy.config.core.v3.ConfigSource"


@pytest.fixture
def states_of(monkeypatch):
    """Return a function that tries the fields of one message."""
    monkeypatch.syspath_prepend(TOOLS)  # as for a script: modules of its own stand beside it
    small, corpus = import_module("xds_small"), import_module("xds_corpus")
    samples = [small._sample(url, small.from_dict(url.rpartition("/")[2], one)) for url, one in corpus.resources()]
    kinds = {inner.DESCRIPTOR.full_name for one in samples for inner, *_ in small._walk(one.message, (), "")}

    def run(kind: str) -> dict[str, str]:
        (found,) = small.small_messages(frozenset(kinds - {kind}))
        return found.states

    return run


def test_what_is_told_is_without_effect(states_of):
    assert {"No effect"} == set(states_of(SETTINGS).values())


def test_what_is_not_told_is_an_error_of_the_tool(states_of, monkeypatch):
    monkeypatch.setattr(decode_cluster_http, "pass_over", lambda *_: None)
    with pytest.raises(AssertionError, match=rf"{SETTINGS}\.hpack_table_size: ignored in silence"):
        states_of(SETTINGS)


def test_what_is_refused_is_told_from_what_has_no_effect(states_of, monkeypatch):
    states = states_of(SOURCE)
    assert ("Refused", "No effect") == (states["api_config_source"], states["initial_fetch_timeout"])
    monkeypatch.setattr(decode_common, "_SOURCES", decode_common._SOURCES | {"initial_fetch_timeout"})
    with pytest.raises(AssertionError, match=rf"{SOURCE}\.initial_fetch_timeout: ignored in silence"):
        states_of(SOURCE)


def test_a_message_without_a_table_is_an_error_of_the_tool(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    build = import_module("build_xds_features")
    section = build.Section("t", "envoy.config.cluster.v3.CircuitBreakers", {"thresholds": "Honoured"})
    with pytest.raises(AssertionError, match=r"CircuitBreakers\.Thresholds, in .*CircuitBreakers\.thresholds"):
        build.check_complete((section,))
