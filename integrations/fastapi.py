"""MeshMiddleware for FastAPI and Starlette: `app.add_middleware(MeshMiddleware, mesh=mesh)`."""

from meshlib.integrations.asgi import MeshMiddleware

__all__ = ["MeshMiddleware"]
