"""The command `xds-server` as a process: the ready line, errors in one line, exit codes, signals."""

import json
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

SERVICE_ENTRY = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: checkout}
spec:
  hosts: [checkout.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1}]
"""

COMMAND = [sys.executable, "-m", "xds_server"]
ANYWHERE = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "checkout.yaml").write_text(SERVICE_ENTRY)
    return folder


@pytest.fixture
def serve() -> Callable[..., object]:
    """Return a context manager: a running server, and the addresses of its ready line."""

    @contextmanager
    def start(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
        process = subprocess.Popen(
            [*COMMAND, "serve", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("xds-server ready: "), process.communicate()[1]
            yield process, dict(re.findall(r"(\w+)=(\S+)", line))
        finally:
            process.kill()
            process.communicate()

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_says_where_it_is_and_a_signal_ends_it_well(serve, documents, number):
    with serve(str(documents), *ANYWHERE) as (process, ready):
        assert "off" == ready["secure"]
        assert 0 < int(ready["resources"])
        assert "ready\n" == httpx.get(f"{ready['admin']}/readyz", trust_env=False).text
        process.send_signal(number)
        assert 0 == process.wait(60)


def test_state_directory_brings_the_secure_listener_and_private_files(serve, documents, tmp_path):
    state = tmp_path / "state"
    with serve(str(documents), *ANYWHERE, "--secure-listen", "127.0.0.1:0", "--state-dir", str(state)) as (_, ready):
        assert re.fullmatch(r"127\.0\.0\.1:\d+", ready["secure"])
    modes = {str(path.relative_to(state)): stat.S_IMODE(path.stat().st_mode) for path in state.rglob("*.*")}
    assert {"ca/root.pem": 0o644, "ca/root.key": 0o600, "token.key": 0o600, "leases.json": 0o600} == modes


def test_port_in_use_is_named_in_one_line(documents):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for option in ("--listen", "--admin"):
            result = run("serve", str(documents), *ANYWHERE, option, address)
            assert 1 == result.returncode
            expected = (
                f"xds-server: cannot listen on {address} ({option}): Address already in use; another process has it\n"
            )
            assert expected == result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "PATH"),
        (["/nonexistent"], "cannot read /nonexistent: no such file or folder"),
        (["{documents}", "--listen", "nowhere"], "--listen must be host:port"),
        (["{documents}", "--admin", "0.0.0.0:0"], "--admin-allow-remote"),
        (["{documents}", "--secure-listen", "127.0.0.1:0"], "--secure-listen needs --state-dir"),
        (["{documents}", "--cert-ttl", "soon"], "--cert-ttl must be a duration"),
        (["{documents}", "--cert-ttl", "1ms"], "--cert-ttl must be at least 1s"),
        (["{documents}", "--trust-domain", "a b"], "--trust-domain must be 1 to 255 of lower-case letters"),
        (["{documents}", "--frobnicate"], "--frobnicate"),
    ],
)
def test_what_cannot_be_served_is_said_and_fails(documents, arguments, said):
    result = run("serve", *ANYWHERE, *(each.format(documents=documents) for each in arguments))
    assert result.returncode in (1, 2)
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_bad_document_is_named_with_its_place(documents):
    path = documents / "broken.yaml"
    path.write_text("kind: [\n")
    result = run("serve", str(documents), *ANYWHERE)
    assert 1 == result.returncode
    assert re.search(rf"{re.escape(str(path))}:\d+:\d+: error:", result.stderr)
    assert result.stderr.endswith("xds-server: the configuration has errors\n")


def test_token_is_written_privately_or_printed(tmp_path):
    state, output = tmp_path / "state", tmp_path / "token"
    result = run("token", "--state-dir", str(state), "--service-account", "checkout", "--output", str(output))
    assert (0, "") == (result.returncode, result.stdout)
    assert 0o600 == stat.S_IMODE(output.stat().st_mode)
    assert 3 == len(output.read_text().split("."))
    assert "no server has used" in result.stderr  # the path may have been a slip
    again = run("token", "--state-dir", str(state), "--service-account", "checkout")
    assert (3, "") == (len(again.stdout.split(".")), again.stderr)
    assert 1 == run("token", "--state-dir", str(state), "--service-account", "Check Out").returncode


def test_bootstrap_names_server_root_token_and_registry(serve, documents, tmp_path):
    state = str(tmp_path / "state")
    arguments = ["bootstrap", "--state-dir", state, "--node-id", "checkout-1", "--secure", "127.0.0.1:9"]
    result = run(*arguments)
    assert 1 == result.returncode
    assert "root.pem does not exist" in result.stderr
    with serve(str(documents), *ANYWHERE, "--secure-listen", "127.0.0.1:0", "--state-dir", state):
        pass
    made = json.loads(run(*arguments, "--token-file", str(tmp_path / "token")).stdout)
    (server,) = made["xds_servers"]
    assert "127.0.0.1:9" == server["server_uri"]
    assert f"{state}/ca/root.pem" == server["channel_creds"][0]["config"]["ca_certificate_file"]
    assert str(tmp_path / "token") == server["call_creds"][0]["config"]["jwt_token_file"]
    assert ("checkout-1", {"registry_uri": "http://127.0.0.1:18002"}) == (made["node"]["id"], made["meshlib"])
    plain = json.loads(run("bootstrap", "--node-id", "x", "--plaintext", "127.0.0.1:8").stdout)
    assert [{"type": "insecure"}] == plain["xds_servers"][0]["channel_creds"]


def test_validate_prints_places_and_fails_on_errors(documents):
    assert 0 == run("validate", str(documents)).returncode
    (documents / "broken.yaml").write_text("kind: [\n")
    result = run("validate", str(documents), "--json")
    assert 1 == result.returncode
    (finding,) = (each for each in json.loads(result.stdout) if each["severity"] == "error")
    assert finding["file"].endswith("broken.yaml")


def test_render_prints_the_resources_of_a_profile(documents):
    result = run("render", str(documents), "--profile", "envoy")
    rendered = json.loads(result.stdout)
    listeners = rendered["type.googleapis.com/envoy.config.listener.v3.Listener"]
    assert ["outbound"] == list(listeners)
