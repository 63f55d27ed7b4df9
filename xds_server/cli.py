"""The command `xds-server`. Errors are one line on stderr; the exit code is 0 only on success."""

import asyncio
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from xds_server.addresses import Address
from xds_server.bootstrap import Bootstrap
from xds_server.durations import parse_duration
from xds_server.findings import finding_to_dict
from xds_server.model import Finding, Profile, Severity

_EXTRA = ("jwt", "starlette", "uvicorn", "watchfiles", "yaml")

app = typer.Typer(
    help="Management server of the mesh: xDS for meshlib, gRPC and Envoy, registrations, certificates.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Paths = Annotated[list[str], typer.Argument(metavar="PATH...", help="Files and folders of YAML or JSON.")]
StateDir = Annotated[Path, typer.Option(help="Folder of the certificate authority, the token key and the leases.")]


class CommandError(Exception):
    """What went wrong, in one line."""


@app.command()
def serve(
    paths: Paths,
    listen: Annotated[str, typer.Option(help="Plaintext xDS; serves no secrets.")] = "127.0.0.1:18000",
    secure_listen: Annotated[
        str | None,
        typer.Option(help="xDS over TLS; needs --state-dir.", show_default="127.0.0.1:18001 with --state-dir"),
    ] = None,
    admin: Annotated[str, typer.Option(help="HTTP: registrations and status.")] = "127.0.0.1:18002",
    state_dir: Annotated[Path | None, typer.Option(help="Folder of keys and leases; made if missing.")] = None,
    trust_domain: Annotated[str, typer.Option(help="SPIFFE trust domain.")] = "cluster.local",
    cert_ttl: Annotated[str, typer.Option(help="Lifetime of the clients' certificates, at least 1s.")] = "24h",
    debounce_ms: Annotated[
        int, typer.Option(min=0, max=60_000, help="Pause after an edit before it is published.")
    ] = 100,
    load_interval: Annotated[str, typer.Option(help="How often clients report their load, at least 1s.")] = "10s",
    admin_allow_remote: Annotated[
        bool, typer.Option("--admin-allow-remote", help="Let --admin be an address that other machines reach.")
    ] = False,
    max_streams: Annotated[int, typer.Option(min=1, help="Streams that one client may have open.")] = 10_000,
    max_new_streams: Annotated[
        int, typer.Option(min=1, help="Streams that one client may open in a second, after twice as many.")
    ] = 500,
    may_register: Annotated[
        list[str] | None,
        typer.Option(help="account=service: lets a service account register instances of another service; * for all."),
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve the configuration under PATH... and follow its changes."""
    _require_extra()
    from xds_server.admission import StreamLimits
    from xds_server.app import Config
    from xds_server.identity import Speakers, parse_trust_domain
    from xds_server.serving import configure_logging, run

    configure_logging(log_level)
    if secure_listen is None and state_dir is not None:
        secure_listen = "127.0.0.1:18001"
    if secure_listen is not None and state_dir is None:
        raise CommandError("--secure-listen needs --state-dir: the certificate authority lives there")
    admin_address = Address.parse(admin, "--admin")
    if not admin_address.is_loopback and not admin_allow_remote:
        raise CommandError(
            f"--admin {admin} can be reached from other machines, and its pages need no token; "
            "use a loopback address, or --admin-allow-remote if the network is trusted"
        )
    lifetime = parse_duration(cert_ttl, "--cert-ttl")
    load_interval_s = parse_duration(load_interval, "--load-interval").total_seconds()
    if lifetime.total_seconds() < 1:
        raise CommandError(f"--cert-ttl must be at least 1s, not {cert_ttl}")
    if load_interval_s < 1:
        raise CommandError(f"--load-interval must be at least 1s, not {load_interval}")
    config = Config(
        paths=tuple(paths),
        listen=Address.parse(listen, "--listen"),
        secure_listen=Address.parse(secure_listen, "--secure-listen") if secure_listen is not None else None,
        admin=admin_address,
        state_dir=state_dir,
        trust_domain=parse_trust_domain(trust_domain, "--trust-domain"),
        cert_ttl=lifetime,
        quiet_s=debounce_ms / 1000,
        load_interval_s=load_interval_s,
        admin_allow_remote=admin_allow_remote,
        stream_limits=StreamLimits(max_streams, float(max_new_streams), 2 * max_new_streams),
        speakers=Speakers.parse(may_register or (), "--may-register"),
    )
    asyncio.run(run(config))


@app.command()
def token(
    state_dir: StateDir,
    service_account: Annotated[str, typer.Option(help="Whose token it is.")],
    namespace: Annotated[str, typer.Option(help="Its namespace.")] = "default",
    ttl: Annotated[str, typer.Option(help="Lifetime.")] = "24h",
    output: Annotated[Path | None, typer.Option(help="File to write, mode 0600; else stdout.")] = None,
) -> None:
    """Make a token by which a client of the secure listener proves its service account."""
    _require_extra()
    from xds_server.identity import Identity
    from xds_server.private_files import write_atomically
    from xds_server.tokens import Tokens

    identity, lifetime = Identity(namespace, service_account), parse_duration(ttl, "--ttl")
    if not (state_dir / "token.key").exists():
        # A slip in the path would otherwise give a token that no server accepts, without a word.
        print(f"xds-server: no server has used {state_dir} yet; making its token key", file=sys.stderr)
    made = Tokens.open(state_dir).issue(identity, lifetime)
    if output is None:
        print(made)
    else:
        write_atomically(output, made.encode())


@app.command()
def bootstrap(
    node_id: Annotated[str, typer.Option(help="Unique per process, for example checkout-1.")],
    state_dir: Annotated[Path | None, typer.Option(help="The server's folder, for its root certificate.")] = None,
    secure: Annotated[str, typer.Option(help="The server's secure listener.")] = "127.0.0.1:18001",
    admin: Annotated[str, typer.Option(help="The server's HTTP address.")] = "127.0.0.1:18002",
    token_file: Annotated[Path | None, typer.Option(help="File with the client's token.")] = None,
    plaintext: Annotated[
        str | None, typer.Option(help="Use the plaintext listener at this address; no secrets.")
    ] = None,
    cluster: Annotated[str, typer.Option(help="Name of the service that the client is.")] = "",
    locality: Annotated[
        str, typer.Option(help="Where the client is: region, region/zone or region/zone/sub-zone.")
    ] = "",
) -> None:
    """Print a bootstrap (gRPC's format) for a client of this server."""
    parts = locality.split("/")
    if len(parts) > 3 or (locality and not all(parts)):
        raise CommandError(f"--locality must be region, region/zone or region/zone/sub-zone, not {locality!r}")
    region, zone, sub_zone = (*parts, "", "")[:3]
    address = str(Address.parse(admin, "--admin"))
    made = Bootstrap(node_id=node_id, cluster=cluster, admin=address, locality=(region, zone, sub_zone))
    if plaintext is not None:
        if token_file is not None:
            raise CommandError("--token-file needs the secure listener: a token is never sent in plaintext")
        result = made.plaintext(str(Address.parse(plaintext, "--plaintext")))
    else:
        if state_dir is None:
            raise CommandError("--state-dir is missing (or --plaintext for a server without one)")
        root = state_dir / "ca" / "root.pem"
        if not root.is_file():
            raise CommandError(f"{root} does not exist: start `xds-server serve --state-dir {state_dir}` first")
        result = made.secure(str(Address.parse(secure, "--secure")), root, token_file)
    print(json.dumps(result, indent=2))


@app.command()
def validate(
    paths: Paths,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document for programs.")] = False,
) -> None:
    """Check documents without serving them: file:line:column for every complaint; exit code 1 with errors."""
    _require_extra()
    from xds_server import translate

    findings = translate.validate(paths)
    if as_json:
        print(json.dumps([finding_to_dict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(finding)
        print(_summary(findings), file=sys.stderr)
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(1)


@app.command()
def render(
    paths: Paths,
    profile: Annotated[Profile, typer.Option(help="Kind of client.")] = Profile.MESHLIB,
    trust_domain: Annotated[str, typer.Option(help="SPIFFE trust domain.")] = "cluster.local",
) -> None:
    """Print the resources that clients of a profile are sent, as JSON; without registrations."""
    _require_extra()
    from xds_server import translate
    from xds_server.identity import parse_trust_domain
    from xds_server.render import render_messages
    from xds_server.sources import files

    documents, findings = files.load(paths)
    domain = parse_trust_domain(trust_domain, "--trust-domain")
    compiled = translate.compile_documents(documents, (), profile=profile, trust_domain=domain)
    findings = (*findings, *compiled.findings)
    for finding in findings:
        print(finding, file=sys.stderr)
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(1)
    print(json.dumps(render_messages(compiled.resources), indent=2))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except KeyboardInterrupt:
        return 130
    except (CommandError, ValueError, OSError) as error:
        return _fail(str(error))
    except typer.Abort:
        return 1
    except Exception as error:
        # Usage errors: their class is typer's own in some versions and click's in others, the method is the same.
        if (message := getattr(error, "format_message", None)) is None:
            raise
        return _fail(f"{message()} (see xds-server --help)", code=getattr(error, "exit_code", 2))
    return result if isinstance(result, int) else 0


def _fail(message: str, *, code: int = 1) -> int:
    print("xds-server: " + " ".join(message.split()), file=sys.stderr)
    return code


def _require_extra() -> None:
    missing = []
    for name in _EXTRA:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise CommandError(
            f"missing {', '.join(missing)}; install the server's extra: pip install 'meshlib-xds[server]'"
        )


def _summary(findings: Sequence[Finding]) -> str:
    counts = {severity: sum(finding.severity is severity for finding in findings) for severity in Severity}
    return ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items())
