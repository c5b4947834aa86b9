"""Alpaca's error answers, and the parameters that all of its endpoints read alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date

from starlette.responses import Response


class ApiError(Exception):
    """An answer other than 200, with Alpaca's ``{"message": ...}`` body."""

    def __init__(self, status: int, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.facts: Mapping[str, object] = {}
        """What the body says beside code and message."""

    def response(self) -> Response:
        body: dict[str, object] = {} if self.code is None else {"code": self.code}
        return json_response(body | {"message": self.message, **self.facts}, self.status)


def json_response(body: object, status: int = 200) -> Response:
    """Return `body` as JSON without spaces, as the service writes it."""
    text = json.dumps(body, separators=(",", ":"))
    return Response(text, status, media_type="application/json")


def parse_date(text: str, name: str) -> date:
    """Read ``YYYY-MM-DD``; raises `ApiError` 400 naming the parameter."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ApiError(400, f"Invalid format for parameter {name}: '{text}'") from None


def parse_limit(params: Mapping[str, str], *, default: int, most: int) -> int:
    """Read ``limit``, from 1 to `most`; raises `ApiError` 400."""
    text = params.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise ApiError(400, f"invalid limit: {text}, must be between 1 and {most}")
    return int(text)
