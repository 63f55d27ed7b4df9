"""`meshctl`: what a mesh does, from the command line."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from meshlib.errors import MeshError
from meshlib.mesh import Mesh

__all__ = ["app", "main"]

app = typer.Typer(
    name="meshctl",
    help="Look into a mesh, and see one at work.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Seconds to wait for the management server.")]


@app.command()
def demo(
    fast: Annotated[bool, typer.Option("--fast", help="The same acts with fewer calls, under a minute.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines even in a terminal.")] = False,
) -> None:
    """Play the main job: a canary across real services, with no proxy, in seven asserted acts."""
    from meshlib.cli.demo import run_demo

    raise typer.Exit(run_demo(fast=fast, plain=plain))


@app.command()
def explain(
    url: Annotated[str, typer.Argument(help="http://service/path")],
    method: Annotated[str, typer.Option("-X", "--method")] = "GET",
    header: Annotated[list[str] | None, typer.Option("-H", "--header", help="name: value")] = None,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Say where a request would go, and why, without sending it. The bootstrap comes from the environment."""
    headers = {}
    for line in header or ():
        name, separator, value = line.partition(":")
        if not separator:
            raise typer.BadParameter(f"{line!r} is not of the form 'name: value'")
        headers[name.strip()] = value.strip()
    with Mesh.from_env() as mesh:
        mesh.wait_ready(_authority(url), timeout_s=timeout_s)
        explanation = mesh.explain(method, url, headers=headers)
        print(json.dumps(explanation.to_dict(), indent=2) if as_json else str(explanation))


@app.command()
def status(
    service: Annotated[
        list[str] | None, typer.Argument(help="Services to look up; default: none but the connection.")
    ] = None,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Show the state of every resource: version, age, error."""
    with Mesh.from_env() as mesh:
        if service:
            mesh.wait_ready(*service, timeout_s=timeout_s)
        result = mesh.status()
        print(json.dumps(result.to_dict(), indent=2) if as_json else str(result))


@app.command()
def dump(
    service: Annotated[list[str] | None, typer.Argument(help="Services to look up first.")] = None,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Print every resource with its state, as CSDS tells it; with --json whole, without its secrets."""
    from meshlib.admin.csds import client_status_dict, client_status_text

    with Mesh.from_env() as mesh:
        mesh.start()
        if service:
            mesh.wait_ready(*service, timeout_s=timeout_s)
        print(json.dumps(client_status_dict(mesh), indent=2) if as_json else client_status_text(mesh))


@app.command()
def cert(
    file: Annotated[list[Path] | None, typer.Argument(help="PEM files or SPIFFE bundle maps.")] = None,
    service: Annotated[
        list[str] | None, typer.Option("--service", help="Look up a service first; may be given several times.")
    ] = None,
    csds: Annotated[str, typer.Option("--csds", help="HOST:PORT of a running process that serves CSDS.")] = "",
    within_s: Annotated[
        float | None, typer.Option("--expires-within", help="Exit with 1 if one ends within this many seconds.")
    ] = None,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Show certificates: identity, names, issuer, expiry, source and age. Of files, a running process, or a mesh of its own."""
    from meshlib.cli.cert import certificates, expiring, shown

    found = certificates(file, service, csds, timeout_s)
    print(shown(found, as_json=as_json))
    if within_s is not None and expiring(found, within_s):
        raise typer.Exit(1)


def _authority(url: str) -> str:
    rest = url.partition("://")[2] or url
    return rest.partition("/")[0]


def main() -> None:
    """Entry point: errors of the mesh are one line and exit code 1."""
    try:
        app()
    except MeshError as error:
        print(f"meshctl: {error}", file=sys.stderr)
        sys.exit(1)
