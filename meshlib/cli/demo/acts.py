"""The seven acts. Each takes the stage, makes real calls, and asserts what was seen."""

import time
from collections.abc import Callable
from functools import partial

from meshlib.cli.demo.probe import RogueServer, probe_tls, speaks_plaintext
from meshlib.cli.demo.processes import ClientProcess, DemoError, World
from meshlib.cli.demo.stage import CHECKOUT, GRPC, USERS, Stage, split_of
from meshlib.cli.demo.statistics import binomial_interval

__all__ = ["ACTS"]

OUTAGE_SHARE = 0.475
"""Of the life of a certificate: what the longest outage may take, with the time that clients need to come back. Less than the
half that is left when the next one comes."""
VISIBLE_S = 1.0
"""How soon an edit must be in force (what the demo promises)."""


# --- 1


def shares(stage: Stage) -> None:
    """1. The split: 20/80 with httpx, 90/10 with gRPC; 10 % of the checkout calls are delayed by a second"""
    world_of = {
        "checkout": (CHECKOUT, {"v2": 0.2, "v1": 0.8}, ("httpx-sync", "httpx-async")),
        "my-service": (GRPC, {"v1": 0.9, "v2": 0.1}, ("grpc-sync", "grpc-aio")),
    }
    for service, (url, expected, kinds) in world_of.items():
        _measure(stage, service, url, kinds, expected, "act1")


def _measure(
    stage: Stage, service: str, url: str, kinds: tuple[str, ...], expected: dict[str, float], act: str
) -> None:
    """Compare shares with their 99.9 % intervals; one that falls outside is measured once more with fresh calls.

    One honest run in about two hundred would otherwise end red by chance alone.
    """
    for round_number in (1, 2):
        names = [f"{service}/{act}/{kind}/{round_number}" for kind in kinds]
        for name, kind in zip(names, kinds, strict=True):
            stage.gateway.load(name, kind=kind, url=url, count=stage.calls, concurrency=32)
        for name in names:
            stage.gateway.wait_done(name, 240)
        facts = [stage.board.facts(name) for name in names]
        total = sum(fact.calls for fact in facts)
        results = []
        for version, share in expected.items():
            count = sum(fact.versions[version] for fact in facts)
            low, high = binomial_interval(total, share)
            results.append(
                (
                    f"{service} {version}: {100 * share:.0f} % of the calls",
                    low <= count <= high,
                    f"{count:,} of {total:,}, allowed {low:,} to {high:,}",
                )
            )
        if service == "checkout":
            delayed = sum(fact.delayed for fact in facts)
            low, high = binomial_interval(total, 0.1)
            results.append(
                (
                    "10 % of them delayed by the injected fault",
                    low <= delayed <= high,
                    f"{delayed:,}, allowed {low:,} to {high:,}",
                )
            )
        if all(held for _, held, _ in results) or round_number == 2:
            break
        stage.board.note("a share was outside its interval: measuring once more with fresh calls")
    for result in results:
        stage.board.check(*result)
    if service == "checkout":
        early = sum(fact.early for fact in facts)
        stage.board.check("each delayed call took at least a second", early == 0, f"{early} did not")
    stage.check_no_failures(names)


# --- 2


def header_rule(stage: Stage) -> None:
    """2. The header rule: `canary: true` always reaches v2, anything else is split 90/10"""
    name = "user-service/canary"
    stage.gateway.load(name, kind="httpx-sync", url=USERS, count=100, concurrency=8, headers={"canary": "true"})
    stage.gateway.wait_done(name, 60)
    facts = stage.board.facts(name)
    stage.board.check(
        "with `canary: true` every call reaches v2", facts.versions["v2"] == 100, dict(facts.versions).__repr__()
    )
    _measure(stage, "user-service", USERS, ("httpx-sync", "httpx-async"), {"v1": 0.9, "v2": 0.1}, "act2")


# --- 3


def weight_shift(stage: Stage) -> None:
    """3. A weight shift from 20 to 50 by editing the YAML file, under load"""
    loads = (
        ("checkout/act3/httpx-sync", "httpx-sync", CHECKOUT),
        ("checkout/act3/httpx-async", "httpx-async", CHECKOUT),
    )
    with stage.load(*loads):
        time.sleep(0.5)
        stage.world.edit("checkout-canary.yaml", ("weight: 20", "weight: 50"), ("weight: 80", "weight: 50"))
        took = stage.wait(
            "the new weights", lambda: abs(split_of(stage.gateway.explain(CHECKOUT)).get("v2", 0) - 0.5) < 1e-9
        )
        stage.board.check(
            f"the new weights are in force within {VISIBLE_S:.0f} s",
            took is not None and took < VISIBLE_S,
            "never" if took is None else f"{1000 * took:.0f} ms",
        )
        _measure(stage, "checkout", CHECKOUT, ("httpx-async",), {"v2": 0.5, "v1": 0.5}, "act3b")
    stage.check_no_failures([name for name, _, _ in loads])


# --- 4


def crash(stage: Stage) -> None:
    """4. One of the two v1 replicas of checkout is killed with SIGKILL under load, and comes back"""
    board, world = stage.board, stage.world
    loads = (
        ("checkout/act4/httpx-sync", "httpx-sync", CHECKOUT),
        ("checkout/act4/httpx-async", "httpx-async", CHECKOUT),
    )
    retries, ejections = board.retries(), board.ejections()
    with stage.load(*loads):
        time.sleep(max(0.5, stage.seconds / 4))
        world.kill("checkout-v1-b")
        gone = stage.wait("the lease of the dead replica", lambda: len(_addresses(world, "checkout")) == 2)
        board.check(
            "the dead replica leaves by ejection or by the end of its lease",
            gone is not None or board.ejections() > ejections,
            f"{board.ejections() - ejections} ejections, lease over after {gone or 0:.1f} s",
        )
        world.start_service("checkout-v1-b", "checkout", "v1", "checkout")
        back = stage.wait("the return of the replica", lambda: len(_addresses(world, "checkout")) == 3, 45)
        board.check("it comes back", back is not None, f"after {back or 0:.1f} s")
        time.sleep(stage.seconds / 4)
    board.note(f"{board.retries() - retries} attempts were repeated on another replica")
    stage.check_no_failures([name for name, _, _ in loads])


def _addresses(world: World, service: str) -> list[str]:
    return [f"{entry['address']}:{entry['port']}" for entry in world.registrations() if entry["service"] == service]


# --- 5


def mutual_tls(stage: Stage) -> None:
    """5. Mutual TLS 1.3 everywhere, while the applications say http:// and xds:///; certificates rotate under load"""
    board, world = stage.board, stage.world
    everyone = [(entry["service"], f"{entry['address']}:{entry['port']}") for entry in world.registrations()]
    probes = {address: probe_tls(address, world.root_ca) for _, address in everyone}
    versions = {probe.tls_version for probe in probes.values()}
    board.check(
        "every instance talks TLS 1.3 with a certificate of the mesh's own CA",
        versions == {"TLSv1.3"} and len(probes) == 7,
        f"{len(probes)} instances, {sorted(versions)}",
    )
    wrong = [
        address
        for service, address in everyone
        if probes[address].spiffe_id != f"spiffe://cluster.local/ns/default/sa/{service}"
    ]
    board.check(
        "each proves the SPIFFE identity of its service",
        not wrong,
        ", ".join(sorted({probe.spiffe_id for probe in probes.values()})),
    )
    served = [address for address, probe in probes.items() if probe.was_answered]
    board.check(
        "a client without a certificate is refused everywhere",
        not served,
        f"{len(served)} of {len(probes)} answered it",
    )
    plain = [address for address in probes if speaks_plaintext(address)]
    board.check("plaintext is refused everywhere", not plain, f"{len(plain)} of {len(probes)} answered it")

    with RogueServer(*stage.rogue_material()) as rogue:
        world.write("payments.yaml", PAYMENTS.format(port=rogue.port))
        stage.wait(
            "the rogue endpoint",
            lambda: (
                stage.gateway.call("httpx-sync", "http://payments/")["status"] == "ConnectError"
                and rogue.handshakes > 0
            ),
        )
        answer = stage.gateway.call("httpx-sync", "http://payments/secret")
        board.check(
            "a server with another identity than the service's is refused",
            answer["status"] == "ConnectError" and rogue.handshakes > 0,
            str(answer.get("text", ""))[:110],
        )
        board.check(
            "it gets no byte of application data",
            rogue.application_bytes == 0,
            f"{rogue.handshakes} handshakes, {rogue.application_bytes} bytes",
        )

    loads = tuple(
        (f"{service}/act5/{kind}", kind, url)
        for service, kind, url in (
            ("checkout", "httpx-sync", CHECKOUT),
            ("user-service", "httpx-async", USERS),
            ("my-service", "grpc-sync", GRPC),
            ("my-service", "grpc-aio", GRPC),
        )
    )
    rotations = board.rotations
    with stage.load(*loads):

        def rotated() -> bool:
            fresh = [probe_tls(address, world.root_ca).serial != probe.serial for address, probe in probes.items()]
            return all(fresh) and board.rotations > rotations

        took = stage.wait("new certificates everywhere", rotated, world.cert_ttl_s + 20)
        time.sleep(0.5)
        board.check(
            "every server's and the client's certificate is replaced under load",
            took is not None,
            f"within {took or 0:.1f} s",
        )
    stage.check_no_failures([name for name, _, _ in loads])


PAYMENTS = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: payments
  namespace: default
spec:
  hosts: [payments.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {{number: 80, name: http, protocol: HTTP}}
  endpoints:
  - address: 127.0.0.1
    ports: {{http: {port}}}
    serviceAccount: payments
"""


# --- 6


def authorization(stage: Stage) -> None:
    """6. Authorization: auth-service and gateway may GET and POST, not DELETE; a stranger may nothing"""
    board = stage.board
    for account in ("gateway", "auth-service", "stranger"):
        client = stage.gateway if account == "gateway" else stage.client(account)
        expected = (
            {"GET": 200, "POST": 200, "DELETE": 403}
            if account != "stranger"
            else {"GET": 403, "POST": 403, "DELETE": 403}
        )
        seen = {method: client.call("httpx-sync", USERS, method=method)["status"] for method in expected}
        board.check(
            f"{account} on user-service: " + ", ".join(f"{method} {status}" for method, status in expected.items()),
            seen == expected,
            str(seen),
        )
        code = "PERMISSION_DENIED" if account == "stranger" else "OK"
        codes = {kind: client.call(kind, GRPC)["status"] for kind in ("grpc-sync", "grpc-aio")}
        board.check(f"{account} on my-service: {code}", set(codes.values()) == {code}, str(codes))


# --- 7


def outage(stage: Stage) -> None:
    """7. The management server is killed: traffic goes on, a new process starts from its disk copy; then it returns"""
    board, world = stage.board, stage.world
    loads = tuple(
        (f"{service}/act7/{kind}", kind, url)
        for service, kind, url in (
            ("checkout", "httpx-async", CHECKOUT),
            ("user-service", "httpx-sync", USERS),
            ("my-service", "grpc-aio", GRPC),
        )
    )
    _fresh_certificates(stage)
    with stage.load(*loads):
        time.sleep(0.3)
        world.kill("xds-server")
        time.sleep(stage.seconds / 4)
        # Another process of the same node: what the first one saved is what this one starts from.
        newcomer = world.start_client("client-gateway", "gateway", lambda event: None)
        newcomer.wait_ready()
        answers = {
            url: newcomer.call(kind, url)["status"] for kind, url in (("httpx-sync", CHECKOUT), ("grpc-sync", GRPC))
        }
        board.check("a new client process works without the server", set(answers.values()) <= {200, "OK"}, str(answers))
        world.start_server()
        world.edit(
            "checkout-canary.yaml",
            (
                "host: checkout\n            subset: v2\n          weight: 50",
                "host: checkout\n            subset: v2\n          weight: 0",
            ),
        )
        for who, client in (("the client that was there", stage.gateway), ("the newcomer", newcomer)):
            took = stage.wait(f"the change at {who}", partial(_is_all_v1, client), 30)
            board.check(
                f"after its return a change reaches {who}",
                took is not None,
                "never" if took is None else f"{took:.1f} s later",
            )
        world.write("user-service-strangers.yaml", STRANGERS)
        took = stage.wait(
            "the change at the services",
            lambda: all(
                stage.client("stranger").call("httpx-sync", USERS, headers=headers)["status"] == 200
                for headers in ({"canary": "true"}, {})
            ),
            30,
        )
        board.check(
            "and it reaches the services: a new rule lets the stranger GET",
            took is not None,
            "never" if took is None else f"{took:.1f} s later",
        )
    stage.check_no_failures([name for name, _, _ in loads])


def _is_all_v1(client: ClientProcess) -> bool:
    return split_of(client.explain(CHECKOUT)).get("v1", 0) == 1


def _fresh_certificates(stage: Stage) -> None:
    """Wait until everyone has enough certificate lifetime left to live through the outage.

    Renewal happens at half of the lifetime; nobody can be renewed while the server is away.
    """
    world = stage.world
    outage_s = OUTAGE_SHARE * world.cert_ttl_s

    def fresh() -> bool:
        if stage.board.expires_at - time.time() < outage_s:  # noqa: TID251  # certificate lifetimes are wall-clock
            return False
        return all(
            probe_tls(f"{entry['address']}:{entry['port']}", world.root_ca).remaining_s > outage_s
            for entry in world.registrations()
        )

    if stage.wait("fresh certificates", fresh, world.cert_ttl_s) is None:
        raise DemoError("the certificates are not renewed")


STRANGERS = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: user-service-strangers
  namespace: default
spec:
  selector:
    matchLabels: {app: user-service}
  rules:
  - from:
    - source: {principals: ["cluster.local/ns/default/sa/stranger"]}
    to:
    - operation: {methods: ["GET"]}
"""

ACTS: tuple[Callable[[Stage], None], ...] = (
    shares,
    header_rule,
    weight_shift,
    crash,
    mutual_tls,
    authorization,
    outage,
)
