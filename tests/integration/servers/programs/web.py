"""A FastAPI service; the environment says how it is run.

RUN: `mesh` (through meshlib's `run`) or `bare` (a plain server with the middleware and a registration, no TLS).
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

import meshlib
from meshlib.events import RequestServed
from meshlib.integrations import uvicorn as mesh_uvicorn
from meshlib.integrations.fastapi import MeshMiddleware
from meshlib.runtime.context import current_request

OPTIONS = json.loads(os.environ.get("OPTIONS", "{}"))
PORT = int(os.environ.get("PORT", "0"))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if os.environ["RUN"] != "bare":
        yield
        return
    registration = mesh.register(
        service=OPTIONS["service"],
        namespace=OPTIONS["namespace"],
        address=f"127.0.0.1:{PORT}",
        service_account=OPTIONS["service_account"],
        when_listening=True,
    )
    yield
    registration.close()


app = FastAPI(lifespan=lifespan)
mesh = meshlib.Mesh.from_env()
app.add_middleware(MeshMiddleware, mesh=mesh, service="web")
mesh.add_hook(lambda event: print(f"served {event.method} {event.path} {event.status}", flush=True)
              if isinstance(event, RequestServed) and os.environ.get("LOG") else None)  # fmt: skip


@app.get("/slow")
async def slow() -> dict[str, int]:
    await asyncio.sleep(0.5)
    return {"pid": os.getpid()}


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"in context\n" if current_request() is not None else b"outside\n"

    return StreamingResponse(body())


@app.api_route("/{path:path}", methods=["GET", "DELETE", "HEAD"])
async def answer(request: Request) -> dict[str, object]:
    inbound = current_request()
    assert inbound is not None
    return {"pid": os.getpid(), "principal": inbound.principal, "path": request.url.path, "client": request.client,
            "scheme": request.url.scheme}  # fmt: skip


if __name__ == "__main__":
    with mesh:
        if os.environ["RUN"] == "bare":
            uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
        else:
            mesh_uvicorn.run(app, mesh=mesh, port=PORT, log_level="warning", **OPTIONS)
    print("closed", flush=True)
