"""The API of a Kubernetes cluster with two namespaces and nothing else, which istiod wants at its start.

Lists are empty, watches say so and stay open, what is written is answered as if it had been stored.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

NAMESPACES = ("default", "istio-system")
KINDS = {
    "customresourcedefinitions": "CustomResourceDefinition",
    "endpointslices": "EndpointSlice",
    "ingressclasses": "IngressClass",
    "mutatingwebhookconfigurations": "MutatingWebhookConfiguration",
    "validatingwebhookconfigurations": "ValidatingWebhookConfiguration",
    "configmaps": "ConfigMap",
    "serviceaccounts": "ServiceAccount",
    "ingresses": "Ingress",
}
NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


def _namespace(name: str) -> dict[str, Any]:
    metadata = {"name": name, "uid": name, "resourceVersion": "1", "labels": {"kubernetes.io/metadata.name": name}}
    return {"kind": "Namespace", "apiVersion": "v1", "metadata": metadata, "status": {"phase": "Active"}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients hang up in the middle of a watch


class KubernetesApi:
    """Attributes:
    url: Where it listens.
    unknown: Paths that it had no answer for.
    """

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self._ending = threading.Event()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                version, plural, name = _parse(url.path)
                if url.path == "/version":
                    self._answer(200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
                elif not plural:
                    api.unknown.append(self.path)
                    self._answer(404, NOT_FOUND)
                elif name:
                    found = plural == "namespaces" and name in NAMESPACES
                    self._answer(200, _namespace(name)) if found else self._answer(404, NOT_FOUND)
                elif query.get("watch") in ("1", "true"):
                    self._watch(version, plural, is_initial=query.get("sendInitialEvents") == "true")
                else:
                    items = [_namespace(one) for one in NAMESPACES] if plural == "namespaces" else []
                    self._answer(200, {"metadata": {"resourceVersion": "1"}, "items": items})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                try:
                    self._answer(201, json.loads(body))
                except ValueError:  # protobuf
                    self._answer(415, {**NOT_FOUND, "reason": "UnsupportedMediaType", "code": 415})

            do_PUT = do_PATCH = do_POST

            def _watch(self, version: str, plural: str, *, is_initial: bool) -> None:
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                if is_initial:
                    for name in NAMESPACES if plural == "namespaces" else ():
                        self._event("ADDED", _namespace(name))
                    kind = KINDS.get(plural, plural.removesuffix("s").capitalize())
                    if "PartialObjectMetadata" in self.headers.get("accept", ""):
                        kind, version = "PartialObjectMetadata", "meta.k8s.io/v1"
                    metadata = {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}}
                    self._event("BOOKMARK", {"kind": kind, "apiVersion": version, "metadata": metadata})
                api._ending.wait()

            def _event(self, kind: str, found: dict[str, Any]) -> None:
                line = json.dumps({"type": kind, "object": found}).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parse(path: str) -> tuple[str, str, str]:
    """Return API version, plural and name of a path of the API; empty where there is none."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        version, rest = parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        version, rest = "/".join(parts[1:3]), parts[3:]
    else:
        return "", "", ""
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    return version, rest[0], rest[1] if len(rest) > 1 else ""
