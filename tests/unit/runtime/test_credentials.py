"""Tokens from files, and where they may go."""

import base64
import json
from pathlib import Path

import pytest
from peers.authority import Authority, Leaf

from meshlib.errors import ConfigError
from meshlib.runtime.credentials import TlsFiles, authorization, is_local, open_channel, read_token
from meshlib.xds.bootstrap import GoogleDefaultCreds, InsecureCreds, JwtTokenFile, ServerConfig, TlsCreds


def jwt(**claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none'})}.{part(claims)}.c2ln"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("127.0.0.1:18000", True),
        ("dns:///127.0.0.1:18000", True),
        ("localhost:1", True),
        ("[::1]:18000", True),
        ("unix:///run/xds.sock", True),
        ("10.0.0.1:18000", False),
        ("xds.example.com:443", False),
        ("localhost.example.com:443", False),
    ],
)
def test_what_stays_on_this_machine(uri: str, expected: bool) -> None:
    assert is_local(uri) is expected


def test_a_token_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    server = ServerConfig("127.0.0.1:1", InsecureCreds(), (JwtTokenFile(str(file)),))
    for number in (1, 2):
        file.write_text(jwt(sub=number, exp=100) + "\n")
        assert authorization(server, lambda: 99.0) == (("authorization", f"Bearer {jwt(sub=number, exp=100)}"),)


def test_an_expired_token_is_an_error_without_the_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(jwt(exp=100))
    with pytest.raises(ConfigError, match=r"the token in .*token expired 10 s ago") as caught:
        read_token(str(file), 110.0)
    assert jwt(exp=100) not in str(caught.value)


@pytest.mark.parametrize("text", ["", "secret words", "a.b.c", "a.b\r\nx: y.c", "onlyone"])
def test_what_is_no_token_is_an_error_that_does_not_show_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ConfigError, match="does not hold a JWT") as caught:
        read_token(str(file), 0.0)
    assert not text or text not in str(caught.value).replace(str(file), "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"token .*/none cannot be read: No such file"):
        read_token(str(tmp_path / "none"), 0.0)


def test_a_token_does_not_leave_the_machine_in_the_clear() -> None:
    with pytest.raises(ConfigError, match=r"may not go to 10\.0\.0\.1:1 in the clear"):
        open_channel(ServerConfig("10.0.0.1:1", InsecureCreds(), (JwtTokenFile("/x"),)), TlsFiles())


def test_a_root_certificate_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"ca_certificate_file /none/root\.pem cannot be read: No such file"):
        open_channel(ServerConfig("10.0.0.1:1", TlsCreds("/none/root.pem")), TlsFiles())


def test_googles_credentials_need_googles_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "google.auth", None)
    with pytest.raises(ConfigError, match="google_default needs the packages google-auth"):
        open_channel(ServerConfig("10.0.0.1:1", GoogleDefaultCreds()), TlsFiles())


def tls_files(folder: Path, leaf: Leaf, roots: bytes) -> TlsCreds:
    for name, content in (("cert.pem", leaf.chain_pem), ("key.pem", leaf.key_pem), ("root.pem", roots)):
        (folder / name).write_bytes(content)
    return TlsCreds(str(folder / "root.pem"), str(folder / "cert.pem"), str(folder / "key.pem"))


def test_tls_files_are_read_each_time(tmp_path: Path) -> None:
    authority, files = Authority(), TlsFiles()
    for _ in range(2):
        leaf = authority.issue(dns=["a"])
        found = files.read(tls_files(tmp_path, leaf, authority.pem))
        assert (found.chain, found.key, found.roots) == (leaf.chain_pem, leaf.key_pem, authority.pem)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("key.pem", None, "private_key_file .*key.pem cannot be read"),
        ("root.pem", b"", "ca_certificate_file .*root.pem holds no PEM certificates"),
        ("root.pem", b"-----BEGIN CERTIFICATE-----", "ca_certificate_file .*root.pem holds no PEM certificates"),
        ("cert.pem", b"half", "cert.pem, .*key.pem: not a PEM certificate"),
        ("cert.pem", Authority().issue(dns=["a"]).chain_pem, "cert.pem, .*key.pem: the key is not the certificate's"),
    ],
)
def test_tls_files_in_the_middle_of_a_replacement_leave_those_before_in_use(
    tmp_path: Path, name: str, content: bytes | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    authority, files = Authority(), TlsFiles()
    config = tls_files(tmp_path, authority.issue(dns=["a"]), authority.pem)
    before = files.read(config)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert files.read(config) is before
    with pytest.raises(ConfigError, match=reason) as caught:
        TlsFiles().read(config)
    assert caplog.messages == [f"{caught.value}; the credentials before stay in use"]
    assert "PRIVATE KEY" not in str(caught.value)
    later = files.read(tls_files(tmp_path, authority.issue(dns=["b"]), authority.pem))
    assert later != before
