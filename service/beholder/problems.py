"""Every error of the HTTP interface as an RFC 9457 problem, in one place. docs/errors.md lists the codes.

No body of an error has a key `scores` or `rewards`, so a client that forgets the status cannot take one for an answer.
"""

import logging
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from beholder.errors import BeholderError, InvalidRequest, InvalidText, Overloaded

MEDIA_TYPE: Final = "application/problem+json"
CODE_KEY: Final = "beholder.code"
"""Where the scope keeps the problem's code for metrics and log."""
ID_KEY: Final = "beholder.request_id"
SHOWN_ERRORS: Final = 20
MOST_FAULTS: Final = 1000
"""Above this many faults none is listed: pydantic makes an object of each, to show a few."""
CLIENT_GONE: Final = 499
"""nginx's status for this; nobody reads it but the metrics."""

_RETRY: Final = {"Retry-After": "1"}
# Where the body may be unread, the connection of a slow or unknown client ends. That of a large body does not: a client
# that still sends would find the connection reset, and not the answer.
_HEADERS: Final = {
    401: {"WWW-Authenticate": 'Bearer, Basic realm="beholder"', "Connection": "close"},
    408: {"Connection": "close"},
    429: _RETRY,
    503: _RETRY,
}
_log = logging.getLogger(__name__)


class InvalidBody(InvalidRequest):
    """A body that is not JSON or not of the schema; `errors` has place and problem of each fault."""

    def __init__(self, errors: list[dict[str, str]]) -> None:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{errors[0]['at']}: {errors[0]['problem']}{more}")
        self.errors = errors[:SHOWN_ERRORS]

    @property
    def members(self) -> dict[str, Any]:
        return {"errors": self.errors}


def from_validation(error: ValidationError) -> InvalidRequest:
    """The error of a body that pydantic refused."""
    if (count := error.error_count()) > MOST_FAULTS:
        return InvalidBody([{"at": "body", "problem": f"{count} faults, too many to name: send what /docs shows"}])
    return _invalid(error.errors(include_url=False, include_context=False, include_input=False))


def problem(status: int, code: str, detail: str, scope: Any = None, **members: Any) -> Response:
    title = "Client Closed Request" if status == CLIENT_GONE else HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail}
    if scope is not None:
        scope[CODE_KEY] = code
        if ID_KEY in scope:
            body["request_id"] = scope[ID_KEY]
    # A text that was sent may come back in `detail`, and need not be valid Unicode.
    body = {name: _printable(value) for name, value in body.items()}
    return JSONResponse({**body, **members}, status, _HEADERS.get(status), MEDIA_TYPE)


def internal_problem(error: Exception, scope: Any = None) -> Response:
    """A 500 that tells the client an id and the log the rest."""
    instance = uuid.uuid4().urn
    _log.error("%s %s", instance, type(error).__name__, exc_info=error)
    _let_go(error)
    detail = "an internal error; the service's log has it under this `instance`"
    return problem(500, "internal", detail, scope, instance=instance)


def error_problem(error: BeholderError, shed_status: int, scope: Any = None) -> Response:
    """The problem of an error that was raised on purpose; load that is shed has the status that is set."""
    if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return internal_problem(error, scope)
    _let_go(error)
    status = shed_status if isinstance(error, Overloaded) else error.status
    return problem(status, error.code, str(error), scope, **error.members)


def _let_go(error: Exception) -> None:
    """Free what the error has passed through: images, and tasks that hold the error, a cycle which only the garbage
    collector would end."""
    error.__traceback__ = None


def install(app: FastAPI, shed_status: int) -> None:
    """Route errors of the application through this module."""

    @app.exception_handler(BeholderError)
    async def beholder_error(request: Request, error: BeholderError) -> Response:
        return error_problem(error, shed_status, request.scope)

    @app.exception_handler(RequestValidationError)
    async def invalid_parameters(request: Request, error: RequestValidationError) -> Response:
        return error_problem(_invalid(error.errors()), shed_status, request.scope)

    @app.exception_handler(ClientDisconnect)
    async def client_gone(request: Request, error: ClientDisconnect) -> Response:
        return problem(CLIENT_GONE, "client-gone", "the client closed the connection", request.scope)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase
        response = problem(error.status_code, phrase.lower().replace(" ", "-"), str(error.detail), request.scope)
        response.headers.update(error.headers or {})
        return response


def _invalid(found: Sequence[Any]) -> InvalidRequest:
    for item in found:
        if item["type"] in ("json_invalid", "string_unicode") and _is_about_text(item["msg"]):
            return InvalidText(f"the text is not valid Unicode ({item['msg']}): send UTF-8 without lone surrogates")
    return InvalidBody([{"at": _place(item["loc"]), "problem": item["msg"]} for item in found])


def _place(location: tuple[int | str, ...]) -> str:
    """The path in the body, without the name of the alternative that it was read as."""
    path = location[1:] if location[:1] in (("single",), ("batch",)) else location
    return ".".join(map(str, path)) or "body"


def _is_about_text(message: str) -> bool:
    return any(word in message for word in ("surrogate", "unicode", "UTF-8", "hex escape"))


def _printable(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
