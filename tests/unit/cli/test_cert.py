"""`meshctl cert` over files."""

import datetime
import json

import pytest
from peers.authority import Authority, bundle_map
from typer.testing import CliRunner

from meshlib.cli import app
from meshlib.errors import ConfigError

ORDERS = "spiffe://a.example/ns/default/sa/orders"
ROOT = Authority()


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["cert", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def pem(tmp_path):
    path = tmp_path / "chain.pem"
    path.write_bytes(ROOT.issue(ORDERS, ends=datetime.timedelta(hours=6)).chain_pem)
    return path


def test_a_certificate_is_shown_with_its_names_its_issuer_and_its_end(pem):
    code, text = run(pem)
    assert 0 == code
    assert f"certificate {pem}: {ORDERS}, issued by CN=root, expires in 6 h, from file\n" == text


def test_json_has_the_same_for_programs(pem):
    (found,) = json.loads(run(pem, "--json")[1])
    assert (ORDERS, [ORDERS], "CN=root", "file") == tuple(
        found[key] for key in ("spiffe_id", "names", "issuer", "source")
    )
    assert 21000 < found["expires_in_s"] <= 21600
    assert not found["is_due"]


def test_a_bundle_map_is_shown_with_its_trust_domains(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(bundle_map({"a.example": [ROOT], "b.example": [ROOT]}))
    assert f"roots {path}: 2 roots of a.example, b.example" in run(path)[1]


def test_the_end_can_be_a_condition(pem, tmp_path):
    old = tmp_path / "old.pem"
    old.write_bytes(ROOT.issue(ORDERS, ends=-datetime.timedelta(minutes=5)).chain_pem)
    assert (0, 1) == (run(pem, "--expires-within", 3600)[0], run(pem, "--expires-within", 30000)[0])
    code, text = run(pem, old, "--expires-within", 0)
    assert (1, True) == (code, "expired 5 min ago" in text)


def test_a_key_beside_the_certificate_is_not_shown(tmp_path):
    path, leaf = tmp_path / "both.pem", ROOT.issue(ORDERS)
    path.write_bytes(leaf.key_pem + leaf.chain_pem)
    assert "PRIVATE" not in run(path, "--json")[1]


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        (None, (), "No such file"),
        (b"nothing", (), "no PEM certificates"),
        (b"{}", (), "not a SPIFFE bundle map"),
        (b"x", ("--csds", "127.0.0.1:1"), "give files, or --csds"),
    ],
)
def test_errors_name_the_file(tmp_path, content, options, reason):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        run(path, *options)
