"""The application: every route, and what surrounds it. A route that does not say who may use it does not start."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from sagittal import __version__
from sagittal.serve.answers import add_error_handlers
from sagittal.serve.metrics import State
from sagittal.serve.security import Gate, allow, check_routes, needed
from sagittal.serve.surround import Surround

if TYPE_CHECKING:
    from sagittal.serve.service import Service

#: Modules of routes; each has a ``router`` whose routes have whole paths.
ROUTES = ("rest", "routes_access", "routes_users", "health", "metrics", "inference_protocol", "worklist", "dicomweb")
#: Modules that add pages and folders of files: each has ``add_pages(app)``.
PAGES = ("web_pages",)


def make_app(service: Service) -> FastAPI:
    """The application of a service.

    Parameters
    ----------
    service : Service

    Raises
    ------
    ServeError
        If a route does not say who may use it.
    """
    app = FastAPI(
        title="Sagittal",
        version=__version__,
        description="Studies in, results out. Not a medical device.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.hashers = CapacityLimiter(2)
    routes: list[BaseRoute] = []
    for name in ROUTES:
        router = import_module(f"sagittal.serve.{name}").router
        routes.extend(_leaves(router))
        app.include_router(router)
    before = list(app.router.routes)
    app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(allow("account"))])(_openapi)
    for name in PAGES:
        import_module(f"sagittal.serve.{name}").add_pages(app)
    routes.extend(route for route in app.router.routes if route not in before)
    check_routes(routes)
    app.state.routes = routes
    service.metrics.registry.register(State(service))
    add_error_handlers(app)
    app.add_middleware(Gate, service=service, routes=routes)
    app.add_middleware(Surround, service=service)  # the last that is added is the outermost
    return app


def _leaves(router: APIRouter) -> Iterator[BaseRoute]:
    """The routes of a router."""
    for route in router.routes:
        inner = getattr(route, "original_router", None)  # a router in a router, since FastAPI 0.13x
        if inner is not None:
            yield from _leaves(inner)
        else:
            yield route


def _openapi(request: Request) -> dict[str, Any]:
    """The description of every route, with the permission that it takes."""
    return describe(request.app)


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description of an application, made once.

    Each operation has ``x-permission``: what it takes, or ``anyone``.
    """
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.router.routes
        )
        described.setdefault("components", {})["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": "sagittal"},
        }
        for route in app.state.routes:
            if not isinstance(route, APIRoute) or not route.include_in_schema:
                continue
            takes = needed(route)
            for method in route.methods or ():
                operation = described["paths"].get(route.path_format, {}).get(method.lower())
                if operation is not None:
                    operation["x-permission"] = takes
                    operation["security"] = [] if takes == "anyone" else [{"token": []}, {"session": []}]
        app.openapi_schema = described
    return app.openapi_schema
