"""The HTTP side: registrations, and pages about the server's state."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from xds_server.findings import finding_to_dict
from xds_server.groups import Group
from xds_server.hub import Hub
from xds_server.identity import Identity, Speakers
from xds_server.load_reports import LoadReports
from xds_server.lrs import LoadReportService
from xds_server.model import Instance, Profile
from xds_server.publisher import Publisher
from xds_server.registrations import describe, parse_registration
from xds_server.registry import Registry
from xds_server.render import render_snapshot
from xds_server.statistics import Statistics
from xds_server.status import clients_status
from xds_server.tokens import TokenRefused, Tokens

_MAX_BODY_BYTES = 65_536
_BODY_TIMEOUT_S = 10.0
_MAX_REGISTRATIONS = 100_000


@dataclass(frozen=True, slots=True)
class AdminState:
    """What the pages show and the registrations change.

    Attributes:
        tokens: With them every instance must have a service account and prove it.
        speakers: Who may register instances of what.
        registrations_changed: Called after a change that clients must hear of.
        leases_changed: Called after every registration, renewal and removal.
    """

    hub: Hub
    publisher: Publisher
    registry: Registry
    statistics: Statistics
    load_reports: LoadReports
    load_reporting: LoadReportService
    tokens: Tokens | None
    speakers: Speakers
    registrations_changed: Callable[[], None]
    leases_changed: Callable[[], None]


def build_admin(state: AdminState, *, hosts: tuple[str, ...] | None = None) -> Starlette:
    """Return the ASGI application.

    Args:
        hosts: Accepted `Host` names, IPv6 in brackets; None accepts all. On loopback it keeps a web page in the developer's browser
            from reaching the server under a name of its own (DNS rebinding).
    """
    pages = _Pages(state)
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))] if hosts is not None else []
    return Starlette(
        routes=[
            Route("/v1/registrations", pages.registrations, methods=["GET"]),
            Route("/v1/registrations/{id}", pages.register, methods=["PUT"]),
            Route("/v1/registrations/{id}", pages.deregister, methods=["DELETE"]),
            Route("/v1/status", pages.status, methods=["GET"]),
            Route("/v1/resources", pages.resources, methods=["GET"]),
            Route("/v1/load", pages.load, methods=["GET"]),
            Route("/v1/findings", pages.findings, methods=["GET"]),
            Route("/healthz", pages.healthy, methods=["GET"]),
            Route("/readyz", pages.ready, methods=["GET"]),
            Route("/metrics", pages.metrics, methods=["GET"]),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _error},
    )


async def _error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


class _Pages:
    def __init__(self, state: AdminState) -> None:
        self._state = state

    async def registrations(self, _request: Request) -> Response:
        now = asyncio.get_running_loop().time()
        return JSONResponse({"registrations": [describe(lease, now) for lease in self._state.registry.leases()]})

    async def register(self, request: Request) -> Response:
        state = self._state
        try:
            instance, ttl_s = parse_registration(request.path_params["id"], await _json_body(request))
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        self._authorize(request, instance)
        if (before := state.registry.get(instance.id)) is not None:
            self._authorize(request, before.instance)  # nobody takes over another's registration
        elif len(state.registry) >= _MAX_REGISTRATIONS:
            raise HTTPException(503, f"there are {_MAX_REGISTRATIONS} registrations, the most that are kept")
        self._check_address(instance)
        now = asyncio.get_running_loop().time()
        is_changed = state.registry.put(instance, ttl_s, now)
        if is_changed:
            state.registrations_changed()
        # A renewal only puts its end off: who waits for the first lease to end need not hear of each.
        if is_changed or before is None or ttl_s < before.ttl_s:
            state.leases_changed()
        return JSONResponse({"id": instance.id, "ttl_s": ttl_s, "expires_in_s": ttl_s})

    async def deregister(self, request: Request) -> Response:
        state = self._state
        instance_id = request.path_params["id"]
        lease = state.registry.get(instance_id)
        if lease is None:
            raise HTTPException(404, f"nothing is registered as {instance_id!r}")
        self._authorize(request, lease.instance)
        state.registry.remove(instance_id)
        state.registrations_changed()
        state.leases_changed()
        return Response(status_code=204)

    async def status(self, _request: Request) -> Response:
        publisher = self._state.publisher
        return JSONResponse(
            {
                "ready": publisher.is_ready,
                "publishes": publisher.publish_count,
                "refused": publisher.is_behind,
                "findings": len(publisher.findings),
                "registrations": len(self._state.registry),
                "clients": clients_status(self._state.hub.streams(), asyncio.get_running_loop().time()),
            }
        )

    async def resources(self, request: Request) -> Response:
        wanted = request.query_params.get("profile", Profile.MESHLIB)
        if wanted not in Profile.__members__.values():
            raise HTTPException(400, f"profile must be one of {', '.join(Profile)}, not {wanted!r}")
        snapshot = self._state.hub.snapshot(Group(Profile(wanted)))
        if snapshot is None:
            raise HTTPException(503, "the management server has not loaded its configuration yet")
        return JSONResponse(render_snapshot(snapshot))

    async def load(self, _request: Request) -> Response:
        state = self._state
        return JSONResponse(
            {
                "interval_s": state.load_reporting.interval_s,
                "clients": state.load_reports.describe(asyncio.get_running_loop().time()),
            }
        )

    async def findings(self, _request: Request) -> Response:
        publisher = self._state.publisher
        found = [finding_to_dict(finding) for finding in publisher.findings]
        return JSONResponse({"refused": publisher.is_behind, "findings": found})

    async def healthy(self, _request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(self, _request: Request) -> Response:
        if not self._state.publisher.is_ready:
            return PlainTextResponse("not ready: the configuration is not loaded yet\n", status_code=503)
        return PlainTextResponse("ready\n")

    async def metrics(self, _request: Request) -> Response:
        return PlainTextResponse(self._state.statistics.exposition(), media_type="text/plain; version=0.0.4")

    def _check_address(self, instance: Instance) -> None:
        """Refuse an address at which another account has registered: what guards it would be in question."""
        if self._state.tokens is None:
            return
        for other in self._state.registry.at(instance.address, instance.port):
            if (other.namespace, other.service_account) != (instance.namespace, instance.service_account):
                place = f"{instance.address} port {instance.port}"
                raise HTTPException(
                    409, f"{place} is registered by service account {other.namespace}/{other.service_account}"
                )

    def _authorize(self, request: Request, instance: Instance) -> None:
        """Check that the caller is the instance's service account, and may speak for its service.

        Without a certificate authority nobody has an identity, and loopback is the only guard.
        """
        if self._state.tokens is None:
            return
        if not instance.service_account:
            detail = "service_account is missing: this server issues identities, so each instance must have one"
            raise HTTPException(401, detail, {"www-authenticate": "Bearer"})
        needed = Identity(instance.namespace, instance.service_account)
        authorization = request.headers.get("authorization")
        if authorization is None:
            detail = f"service account {needed} needs `Authorization: Bearer <token>` (made by `xds-server token`)"
            raise HTTPException(401, detail, {"www-authenticate": "Bearer"})
        try:
            identity = self._state.tokens.verify_header(authorization).identity
        except TokenRefused as refused:
            raise HTTPException(401, str(refused), {"www-authenticate": "Bearer"}) from refused
        if identity != needed:
            raise HTTPException(403, f"the token is of service account {identity}, the registration of {needed}")
        if not self._state.speakers.may_register(identity, instance.service):
            raise HTTPException(
                403,
                f"service account {identity} may not register instances of {instance.service!r}; "
                f"start the server with --may-register {instance.service_account}={instance.service} to allow it",
            )


async def _json_body(request: Request) -> object:
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MAX_BODY_BYTES:
                    raise HTTPException(413, f"a registration has at most {_MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {_BODY_TIMEOUT_S:g} s") from None
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error
