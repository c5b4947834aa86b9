"""The daemon's log on stderr: for people, for grep, or for machines; a line a record, no secrets."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import MutableMapping
from typing import Any, Final

from marketdata.cli.output import send_logs_to_stderr
from marketdata.config import masked_url

FORMATS: Final = ("auto", "text", "logfmt", "json")
_KEPT: Final = ("summary",)


def send_daemon_logs(form: str, level: str) -> None:
    """Configure structlog and logging for a process that runs for long.

    Parameters
    ----------
    form : {"auto", "text", "logfmt", "json"}
        Lines for people, ``key=value`` pairs, or a JSON object a line; auto is text on a terminal,
        else logfmt.
    level : str
        Of the library's records; of others' warnings and worse are shown.
    """
    send_logs_to_stderr(level)
    if form == "auto":
        form = "text" if sys.stderr.isatty() else "logfmt"
    import structlog

    renderer: Any
    if form == "text":
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
            pad_event_to=0,
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        )
    elif form == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        renderer = structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "event"], bool_as_flag=False
        )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            *([] if form == "text" else [structlog.stdlib.add_logger_name]),
            structlog.stdlib.ExtraAdder(allow=_KEPT),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if form == "text" else [structlog.processors.format_exc_info]),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _brief if form == "text" else _flattened,
            _masked,
            renderer,
        ],
    )
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)
    # A warning is a record like any other: nothing else may stand between the lines.
    warnings.showwarning = _log_warning


def _flattened(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make each figure of a report a field of its own; what is 0 goes without saying."""
    for name, value in event.pop("summary", {}).items():
        if value:
            event.setdefault(name, value)
    return event


def _brief(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep the figures of a report that people read along; a terminal is narrow."""
    for name, value in event.pop("summary", {}).items():
        if value and not name.startswith("seconds"):
            event.setdefault(name, value)
    return event


def _masked(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide the passwords of URLs, should a foreign library have logged any."""
    for name, value in event.items():
        if isinstance(value, str) and "://" in value:
            event[name] = masked_url(value)
    return event


def _log_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    logging.getLogger("marketdata").warning("%s", " ".join(str(message).split()))
