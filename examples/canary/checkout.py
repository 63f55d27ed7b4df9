"""checkout: a FastAPI application. The lines marked (1) to (3) put it into the mesh."""

import os

from fastapi import FastAPI

import meshlib
from meshlib.integrations import uvicorn
from meshlib.integrations.fastapi import MeshMiddleware

VERSION = os.environ.get("VERSION", "v1")

app = FastAPI()
mesh = meshlib.Mesh.from_env()  # (1)
app.add_middleware(MeshMiddleware, mesh=mesh, service="checkout")  # (2)


@app.get("/{path:path}")
async def order(path: str) -> dict[str, str | int]:
    return {"service": "checkout", "version": VERSION, "pid": os.getpid()}


if __name__ == "__main__":
    with mesh:
        uvicorn.run(
            app,
            mesh=mesh,
            service="checkout",
            labels={"version": VERSION},
            service_account="checkout",
            ttl_s=2,
            log_level="warning",
        )  # (3)
