"""Debounce, groups, addresses, durations, identities, private files and counters."""

import os
import stat
from datetime import timedelta

import pytest

from meshlib.protos import message_class
from xds_server import cli
from xds_server.addresses import Address
from xds_server.debounce import Debounce
from xds_server.durations import parse_duration
from xds_server.groups import Group, group_of
from xds_server.identity import Identity, parse_trust_domain
from xds_server.model import Profile
from xds_server.ordering import CDS
from xds_server.private_files import create_private, private_folder, read_private, write_atomically
from xds_server.statistics import Statistics
from xds_server.stream import Response
from xds_server.text import one_line
from xds_server.wire import Node, Request, decode_delta_request, decode_request

# Debounce (PSH-1).


def test_nothing_is_due_without_an_event():
    debounce = Debounce(0.1, 1.0)
    assert (None, False) == (debounce.due, debounce.take(100.0))


def test_burst_is_acted_on_once_it_is_quiet():
    debounce = Debounce(0.5, 4.0)
    debounce.event(0.0)
    debounce.event(0.25)
    assert not debounce.take(0.5)
    assert debounce.take(0.75)
    assert not debounce.take(1.0)


def test_lasting_burst_is_cut_at_the_longest_wait():
    debounce = Debounce(0.1, 1.0)
    for tenth in range(20):
        debounce.event(tenth * 0.05)
    assert 1.0 == debounce.due


def test_after_an_action_the_next_event_starts_a_new_burst():
    debounce = Debounce(0.1, 1.0)
    debounce.event(0.0)
    debounce.take(0.1)
    debounce.event(5.0)
    assert 5.1 == debounce.due


def test_zero_acts_at_once():
    debounce = Debounce(0.0, 1.0)
    debounce.event(3.0)
    assert debounce.take(3.0)


# Groups (GRP-1).


@pytest.mark.parametrize(
    ("agent", "profile"),
    [
        ("envoy", Profile.ENVOY),
        ("meshlib", Profile.MESHLIB),
        ("gRPC Python", Profile.GRPC),
        ("gRPC C++", Profile.GRPC),
        ("", Profile.GRPC),
    ],
)
def test_profile_follows_the_user_agent(agent, profile):
    assert Group(profile) == group_of(Node("n", user_agent_name=agent))


def test_envoy_says_where_it_listens():
    node = Node("n", user_agent_name="envoy", metadata={"OUTBOUND_LISTEN": "127.0.0.1:9"})
    assert Group(Profile.ENVOY, "127.0.0.1:9") == group_of(node)


@pytest.mark.parametrize("value", ["", "9", ":9", "host:", "host:0", "host:99999", "host:x", 9])
def test_unusable_listen_address_is_refused(value):
    with pytest.raises(ValueError, match="OUTBOUND_LISTEN"):
        group_of(Node("n", user_agent_name="envoy", metadata={"OUTBOUND_LISTEN": value}))


# Addresses and durations.


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:80", "localhost:0"])
def test_address_reads_back_as_it_was_written(text):
    assert text == str(Address.parse(text, "--x"))


@pytest.mark.parametrize("text", ["", "80", ":80", "host:", "::1:80", "host:65536", "host:-1"])
def test_bad_address_names_its_option(text):
    with pytest.raises(ValueError, match="--x must be host:port"):
        Address.parse(text, "--x")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("h", False)],
)
def test_loopback(host, expected):
    assert expected is Address(host, 1).is_loopback


@pytest.mark.parametrize(
    ("text", "seconds"), [("24h", 86400), ("1h30m", 5400), ("90s", 90), ("500ms", 0.5), ("1.5s", 1.5), ("2d", 172800)]
)
def test_duration(text, seconds):
    assert timedelta(seconds=seconds) == parse_duration(text, "--x")


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "0s", "5 s", "5w", "999999999999d"])
def test_bad_duration_names_its_option(text):
    with pytest.raises(ValueError, match="--x"):
        parse_duration(text, "--x")


# Identities.


def test_identity_in_its_three_forms():
    identity = Identity.from_subject("system:serviceaccount:shop:checkout")
    assert Identity("shop", "checkout") == identity
    assert "system:serviceaccount:shop:checkout" == identity.subject
    assert "spiffe://prod.example/ns/shop/sa/checkout" == identity.spiffe_id("prod.example")


@pytest.mark.parametrize("part", ["", "a/b", "A", "-a", "a" * 64, "a\n"])
def test_identity_parts_are_labels(part):
    with pytest.raises(ValueError, match="DNS label"):
        Identity("default", part)


# Files.


def test_written_file_is_private_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "f"
    write_atomically(path, b"1")
    write_atomically(path, b"2")
    assert (b"2", 0o600) == (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
    assert [path] == list(tmp_path.iterdir())


def test_private_file_is_made_once(tmp_path):
    path = tmp_path / "new" / "f"
    assert b"1" == create_private(path, lambda: b"1")
    assert b"1" == create_private(path, lambda: b"2")
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert [path] == list(path.parent.iterdir())


def test_process_that_comes_second_takes_what_the_first_made(tmp_path):
    path = tmp_path / "f"

    def overtaken() -> bytes:
        write_atomically(path, b"first")
        return b"second"

    assert b"first" == create_private(path, overtaken)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_key_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "token.key"
    path.write_bytes(b"key")
    path.chmod(mode)
    with pytest.raises(ValueError, match=f"mode {mode:o}.*chmod 600"):
        create_private(path, lambda: b"other")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_folder_that_others_can_write_to_is_refused(tmp_path, mode):
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ValueError, match=f"{folder} can be written by others"):
        create_private(folder / "token.key", lambda: b"key")
    assert not list(folder.iterdir())


def test_folder_that_others_can_only_read_will_do(tmp_path):
    (tmp_path / "state").mkdir(mode=0o755)
    assert b"key" == create_private(tmp_path / "state" / "token.key", lambda: b"key")


def test_folder_and_key_of_another_user_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "token.key"
    create_private(path, lambda: b"key")
    monkeypatch.setattr("os.geteuid", lambda: 4242)
    monkeypatch.setattr("xds_server.private_files.TRUSTED_OWNERS", frozenset())
    with pytest.raises(ValueError, match="belongs to user"):
        private_folder(tmp_path)
    with pytest.raises(ValueError, match="belongs to user"):
        read_private(path)


def test_pipe_in_the_place_of_a_key_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "token.key", 0o600)
    with pytest.raises(ValueError, match="is not a file"):
        create_private(tmp_path / "token.key", lambda: b"key")


# Wire and counters.


def test_request_that_is_no_message_is_refused():
    with pytest.raises(ValueError, match="not a DiscoveryRequest"):
        decode_request(b"\xff\xff\xff")


def test_incremental_request_that_is_no_message_is_refused():
    with pytest.raises(ValueError, match="not a DeltaDiscoveryRequest"):
        decode_delta_request(b"\xff\xff\xff")


def test_rejection_that_quotes_a_private_key_is_not_kept():
    message = message_class("envoy.service.discovery.v3.DiscoveryRequest")(type_url=CDS)
    message.error_detail.message = "invalid: -----BEGIN PRIVATE KEY-----\nMIIE"
    assert "(a text that quotes a private key)" == decode_request(message.SerializeToString()).error


def test_counters_are_by_type_and_unknown_types_share_one():
    statistics = Statistics()
    statistics.received(Request(CDS, error="x"), CDS)
    statistics.received(Request("type.googleapis.com/a.B"), "type.googleapis.com/a.B")
    statistics.received(Request("type.googleapis.com/c.D"), "type.googleapis.com/c.D")
    statistics.sent(Response(CDS, "1", "1", (), (), b"12345"))
    lines = statistics.exposition().splitlines()
    assert 'xds_server_requests_total{type="Cluster"} 1' in lines
    assert 'xds_server_requests_total{type="unknown"} 2' in lines
    assert 'xds_server_rejections_total{type="Cluster"} 1' in lines
    assert 'xds_server_response_bytes_total{type="Cluster"} 5' in lines


# The command.


def test_missing_extra_is_named_with_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_EXTRA", ("json", "no_such_module"))
    with pytest.raises(SystemExit) as exited:
        cli.main(["validate", "."])
    assert 1 == exited.value.code
    expected = "xds-server: missing no_such_module; install the server's extra: pip install 'meshlib-xds[server]'\n"
    assert expected == capsys.readouterr().err


def test_text_of_others_is_one_line_of_the_log():
    assert "a b\\x1b[31m c" == one_line("a\r\nb\x1b[31m\u2028c")
    assert "xxx... (10 characters)" == one_line("x" * 10, 3)


@pytest.mark.parametrize("text", ["cluster.local", "prod_1.example-2", "a" * 255])
def test_trust_domain(text):
    assert text == parse_trust_domain(text, "--trust-domain")


@pytest.mark.parametrize("text", ["", "a b", "Prod", "a/b", "a:1", "a\n", "a" * 256])
def test_bad_trust_domain_names_its_option(text):
    with pytest.raises(ValueError, match="--trust-domain must be"):
        parse_trust_domain(text, "--trust-domain")
