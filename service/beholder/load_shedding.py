"""While all places are held, requests with samples are refused at the door."""

from collections.abc import Mapping
from typing import Final

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from beholder.errors import Overloaded
from beholder.in_flight import InFlight
from beholder.problems import error_problem

PLACES_KEY: Final = "beholder.places"
"""Where the scope keeps what the request holds."""


class LoadShedding:
    """Plain ASGI, around the framework and its routing: what refusing costs is lost for what was accepted.

    `routes` are those that score, by their path. The body of a refused request is left unread: it may be megabytes of
    images.
    """

    def __init__(self, app: ASGIApp, in_flight: InFlight, routes: Mapping[str, BaseRoute], shed_status: int) -> None:
        self._app = app
        self._in_flight = in_flight
        self._routes = routes
        self._shed_status = shed_status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._route(scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        try:
            with self._in_flight.arrive() as scope[PLACES_KEY]:
                await self._app(scope, receive, send)
        except Overloaded as error:
            scope["route"] = route
            await error_problem(error, self._shed_status, scope)(scope, receive, send)

    def _route(self, scope: Scope) -> BaseRoute | None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        path: str = scope["path"]
        return self._routes.get(path.removesuffix("\n"))  # as the router has it, whose patterns end with "$"
