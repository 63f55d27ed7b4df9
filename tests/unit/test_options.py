"""What an application passes is refused where it passes it, by the name of the option."""

import functools
import inspect

import grpc
import httpx
import pytest

import meshlib
from meshlib.clients.filters import AsyncFilterChain, FilterChain, FilterHeaders, FilterRequest
from meshlib.clients.function import decorate
from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.errors import DeadlineExceeded, UnavailableError
from meshlib.testing import FakeMesh, mesh_source, service

BOOTSTRAP = {"xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}]}]}


@pytest.fixture
def mesh():
    return mesh_source(service("checkout", "10.0.0.1:80"))


def make(**options):
    return meshlib.Mesh(BOOTSTRAP, **options)


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("state_dir", 3, TypeError),
        ("guard_unsafe", "no", TypeError),
        ("retry_budget", 20, TypeError),
        ("one_retry_layer", None, TypeError),
        ("hand_on", [3], TypeError),
        ("hand_on", {"x-tenant": "a"}, TypeError),
        ("hand_on", ["x tenant"], ValueError),
        ("first_use_timeout_s", "15", TypeError),
        ("first_use_timeout_s", True, TypeError),
        ("first_use_timeout_s", -1, ValueError),
        ("first_use_timeout_s", float("nan"), ValueError),
        ("clock", 3, TypeError),
        ("rng", 3, TypeError),
        ("open_stream", "x", TypeError),
        ("tracer_provider", "x", TypeError),
    ],
)
def test_a_mesh_refuses_an_option_by_its_name(option, value, kind):
    with pytest.raises(kind, match=option):
        make(**{option: value})


def test_a_mesh_refuses_what_is_no_bootstrap():
    with pytest.raises(TypeError, match=r"bootstrap: must be .*NoneType"):
        meshlib.Mesh(None)


def test_questions_and_hooks_are_refused_by_name():
    mesh = make()
    with pytest.raises(TypeError, match="wait_ready: a service"):
        mesh.wait_ready(["checkout"])
    with pytest.raises(TypeError, match="timeout_s"):
        mesh.wait_ready("checkout", timeout_s="5")
    with pytest.raises(TypeError, match="url"):
        mesh.explain("GET", 3)
    with pytest.raises(TypeError, match="hook"):
        mesh.add_hook("x")


@pytest.mark.parametrize("make_transport", [MeshTransport, AsyncMeshTransport])
def test_transports_refuse_an_option_by_its_name(mesh, make_transport):
    with pytest.raises(ValueError, match="passthrough='unkown': must be 'never' or 'unknown'"):
        make_transport(mesh, passthrough="unkown")
    with pytest.raises(TypeError, match="limits: must be Limits"):
        make_transport(mesh, limits=100)
    assert make_transport(mesh, passthrough="unknown", limits=httpx.Limits(max_connections=1)) is not None


@pytest.mark.parametrize("client", ["httpx_transport", "async_httpx_transport"])
def test_filters_that_are_no_sequence_are_refused_by_name(client):
    with pytest.raises(TypeError, match="filters: must be a sequence"):
        getattr(make(), client)(filters=meshlib.Filter())


@pytest.mark.parametrize("make_channel", [MeshChannel, AioMeshChannel])
def test_channels_refuse_an_argument_by_its_name(mesh, make_channel):
    with pytest.raises(TypeError, match="target: must be str"):
        make_channel(mesh, b"xds:///checkout")
    with pytest.raises(TypeError, match="options: must be a sequence of pairs, is dict"):
        make_channel(mesh, "xds:///checkout", options={"grpc.default_authority": "a"})
    with pytest.raises(TypeError, match="options: must be pairs"):
        make_channel(mesh, "xds:///checkout", options=[1])
    with pytest.raises(TypeError, match=r"grpc\.default_authority"):
        make_channel(mesh, "xds:///checkout", options=[("grpc.default_authority", 3)])
    with pytest.raises(TypeError, match="compression"):
        make_channel(mesh, "xds:///checkout", compression="gzip")
    assert make_channel(mesh, "xds:///checkout", options=[("grpc.x", 1)], compression=grpc.Compression.Gzip)


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("timeout_s", "3", TypeError),
        ("timeout_s", -1, ValueError),
        ("method", 3, TypeError),
        ("method", "", ValueError),
        ("path", 3, TypeError),
        ("path", "stock", ValueError),
        ("ignore", [KeyError], TypeError),
        ("ignore", "KeyError", TypeError),
        ("collapse", "yes", TypeError),
        ("cache", {}, TypeError),
        ("key", 3, TypeError),
    ],
)
def test_a_decorator_refuses_an_option_by_its_name(mesh, option, value, kind):
    with pytest.raises(kind, match=rf"mesh\.call: {option}"):
        decorate(mesh, "checkout", **{option: value})


@pytest.mark.parametrize(("name", "kind"), [(3, TypeError), ("", ValueError), ("http://checkout/", ValueError)])
def test_a_decorator_refuses_what_is_no_service(mesh, name, kind):
    with pytest.raises(kind, match=r"mesh\.call: service"):
        decorate(mesh, name)


def test_a_decorator_without_its_service_says_how_it_is_used(mesh):
    with pytest.raises(TypeError, match=r'as in @mesh\.call\("inventory"\)'):
        decorate(mesh, lambda endpoint: 1)


def test_a_decorator_refuses_what_takes_no_endpoint(mesh):
    with pytest.raises(TypeError, match="must be a function"):
        decorate(mesh, "checkout")(3)
    for function in (lambda: 1, lambda *, sku: 1, lambda **options: 1):
        with pytest.raises(TypeError, match="takes no endpoint"):
            decorate(mesh, "checkout")(function)


def test_functions_show_the_signature_that_callers_use(mesh):
    def stock(endpoint: meshlib.Endpoint, sku: str, *, depth: int = 1) -> int:
        return depth

    async def waiting(sku: str, endpoint: meshlib.Endpoint) -> str:
        return sku

    assert str(inspect.signature(decorate(mesh, "checkout")(stock))) == "(sku: str, *, depth: int = 1) -> int"
    assert str(inspect.signature(decorate(mesh, "checkout")(waiting))) == "(sku: str) -> str"


def test_objects_that_can_be_called_are_functions_too(mesh):
    class Stock:
        def __call__(self, endpoint: meshlib.Endpoint, sku: str) -> str:
            return f"{sku}@{endpoint.address}"

    assert decorate(mesh, "checkout")(Stock())("A") == "A@10.0.0.1:80"
    partial = functools.partial(lambda endpoint, sku: f"{sku}@{endpoint.address}", sku="B")
    assert decorate(mesh, "checkout")(partial)() == "B@10.0.0.1:80"


class LateMesh(FakeMesh):
    """A mesh whose configuration does not come."""

    def target(self, authority):
        return None

    def wait_target(self, authority, timeout_s=None, *, fails_fast=False):
        waited_s = 15.0 if timeout_s is None else timeout_s
        self.clock.advance(waited_s)
        raise UnavailableError(f"{authority} is not ready after {waited_s:g} s", resource=authority)


async def test_the_time_of_a_call_holds_for_its_configuration_too(mesh):
    mesh.__class__ = LateMesh
    assert isinstance(mesh, LateMesh)

    @decorate(mesh, "checkout", timeout_s=0.5)
    def blocking(endpoint: meshlib.Endpoint) -> None: ...

    @decorate(mesh, "checkout", timeout_s=0.5)
    async def waiting(endpoint: meshlib.Endpoint) -> None: ...

    @decorate(mesh, "checkout")
    def patient(endpoint: meshlib.Endpoint) -> None: ...

    with pytest.raises(DeadlineExceeded, match=r"not ready after 0\.5 s .*'checkout'"):
        blocking()
    with pytest.raises(DeadlineExceeded, match=r"not ready after 0\.5 s"):
        await waiting()
    with pytest.raises(UnavailableError, match="not ready after 15 s"):
        patient()


def test_numbers_of_budgets_and_caches_are_refused_by_name():
    with pytest.raises(TypeError, match="RetryBudget: percent: must be a number, is str"):
        meshlib.RetryBudget(percent="20")
    with pytest.raises(TypeError, match="ResponseCache: max_entries: must be a whole number, is str"):
        meshlib.ResponseCache(max_entries="3")
    with pytest.raises(ValueError, match="ResponseCache: max_body_bytes=0: must be at least 1"):
        meshlib.ResponseCache(max_body_bytes=0)


def test_a_policy_is_registered_by_a_name_and_has_a_pick():
    with pytest.raises(TypeError, match="give a name"):
        meshlib.register_lb_policy(type("Nearest", (), {}))
    with pytest.raises(TypeError, match="no method `pick`"):
        meshlib.register_lb_policy("acme.NoPick")(type("NoPick", (), {}))
    with pytest.raises(TypeError, match="no method `pick`"):
        meshlib.register_lb_policy("acme.Number")(3)


def test_what_is_carried_is_a_function():
    with pytest.raises(TypeError, match="carry: must be a function"):
        meshlib.carry(3)


class Slip(meshlib.Filter):
    """A filter that answers with a number."""

    def on_request(self, request):
        return 403


class Coroutine(meshlib.Filter):
    """A filter that nobody awaits."""

    async def on_request(self, request):
        return None


class Heard(meshlib.Filter):
    """A filter that hears of an error."""

    def __init__(self) -> None:
        self.heard: list[BaseException] = []

    def on_error(self, request, error):
        self.heard.append(error)


def seen() -> FilterRequest:
    return FilterRequest("checkout", "GET", "/", FilterHeaders())


async def test_a_filter_that_answers_with_something_else_is_named():
    heard = Heard()
    with pytest.raises(TypeError, match=r"Slip\.on_request: the answer: must be FilterAnswer or None, is int"):
        FilterChain([heard, Slip()]).begin(seen())
    with pytest.raises(TypeError, match=r"Slip\.on_request"):
        await AsyncFilterChain([heard, Slip()]).begin(seen())
    assert len(heard.heard) == 2


@pytest.mark.parametrize("chain", [FilterChain, AsyncFilterChain])
def test_a_filter_with_coroutines_is_told_what_to_derive_from(chain):
    with pytest.raises(TypeError, match=r"Coroutine\.on_request is a coroutine function: .* AsyncFilter"):
        chain([Coroutine()])


def test_headers_and_answers_of_filters_are_checked():
    headers = FilterHeaders()
    with pytest.raises(TypeError, match="'x-count': name and value must be str, not str and int"):
        headers["x-count"] = 3
    with pytest.raises(TypeError, match="x-count"):
        headers.add("x-count", b"3")
    with pytest.raises(TypeError, match="FilterAnswer: status"):
        meshlib.FilterAnswer("403")
    with pytest.raises(TypeError, match="FilterAnswer: body"):
        meshlib.FilterAnswer(403, body="no")
    with pytest.raises(TypeError, match="FilterAnswer: headers"):
        meshlib.FilterAnswer(403, {"a": "b"})
