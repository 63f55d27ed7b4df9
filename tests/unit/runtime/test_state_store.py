"""The copy on disk: private, whole or not at all, limited in age and size."""

import os
from pathlib import Path

import pytest

from meshlib.runtime import state_store
from meshlib.runtime.state_store import MAX_AGE_S, StateError, StateStore, default_directory
from meshlib.xds.bootstrap import InsecureCreds, JwtTokenFile, NodeConfig, ServerConfig, TlsCreds
from meshlib.xds.cache import Spare
from meshlib.xds.resources import CDS, SDS

SERVER = ServerConfig("127.0.0.1:1", InsecureCreds())
NODE = NodeConfig("orders-1")
SPARES = (Spare(CDS, "a", "1", b"\x00\xff", 1000.0), Spare(SDS, "default", "2", b"private key", 1001.0))


def store(directory: Path, node: NodeConfig = NODE, server: ServerConfig = SERVER) -> StateStore:
    return StateStore(directory, node, server)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store(tmp_path / "deep" / "state").save(SPARES)
    assert store(tmp_path / "deep" / "state").load(1001.0) == SPARES


def test_there_is_nothing_at_first(tmp_path: Path) -> None:
    assert store(tmp_path / "none").load(0.0) == ()


def test_file_and_directory_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    one = store(directory)
    one.save(SPARES)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert one.path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in directory.iterdir()] == [one.path.name]


def test_nodes_and_servers_have_copies_of_their_own(tmp_path: Path) -> None:
    store(tmp_path).save(SPARES)
    assert store(tmp_path, NodeConfig("other")).load(1001.0) == ()
    assert store(tmp_path, server=ServerConfig("127.0.0.1:2", InsecureCreds())).load(1001.0) == ()


def test_one_identity_does_not_get_the_certificates_of_another_on_a_node_of_the_same_name(tmp_path: Path) -> None:
    servers = [ServerConfig("127.0.0.1:1", TlsCreds(), (JwtTokenFile(f"/{each}.token"),)) for each in ("a", "b")]
    store(tmp_path, server=servers[0]).save(SPARES)
    assert store(tmp_path, server=servers[1]).load(1001.0) == ()
    assert store(tmp_path, server=servers[0]).load(1001.0) == SPARES


def test_a_pipe_in_the_place_of_the_copy_does_not_block(tmp_path: Path) -> None:
    one = store(tmp_path)
    os.mkfifo(one.path, 0o600)
    with pytest.raises(StateError, match="is not a file"):
        one.load(0.0)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_copy_is_set_aside(tmp_path: Path, damage: str) -> None:
    one = store(tmp_path)
    one.save(SPARES)
    data = one.path.read_bytes()
    damaged = {
        "cut": data[:-1],
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "empty": b"",
        "foreign": b"meshlib-state 9 " + data,
    }
    one.path.write_bytes(damaged[damage])
    with pytest.raises(StateError, match=r"is corrupt .*set aside as .*\.corrupt"):
        one.load(1001.0)
    assert [file.suffix for file in tmp_path.iterdir()] == [".corrupt"]
    assert one.load(1001.0) == ()


def test_what_is_older_than_a_week_is_left_out(tmp_path: Path) -> None:
    store(tmp_path).save(SPARES)
    assert store(tmp_path).load(1000.5 + MAX_AGE_S) == SPARES[1:]


def test_a_copy_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.save(SPARES)
    one.path.chmod(0o644)
    with pytest.raises(StateError, match="is not ours alone"):
        one.load(1001.0)


def test_a_directory_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StateError, match="may be written by others"):
        store(tmp_path).save(SPARES)


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"state cannot be written: (Not a directory|File exists)"):
        store(tmp_path / "file").save(SPARES)


def test_a_configuration_too_large_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_store, "MAX_BYTES", 100)
    with pytest.raises(StateError, match="too large"):
        store(tmp_path).save(SPARES)
    assert list(tmp_path.iterdir()) == []


def test_the_default_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_directory() == Path("/somewhere/meshlib")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert os.fspath(default_directory()) == "/home/me/.cache/meshlib"
