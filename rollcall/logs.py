"""Logging: structlog and the standard library's loggers in one stream of lines on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import Processor

# Loud at the level "info" about what our own lines already say.
_QUIET = {"aiokafka": logging.WARNING, "alembic": logging.WARNING, "asyncio": logging.WARNING}


def configure_logging(level: str = "info", fmt: Literal["console", "json"] = "console", **context: object) -> None:
    """Send all log lines of this process to stderr; `context` (`role="worker"`) goes on each of them."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _adding(context),
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    render: list[Processor]
    if fmt == "json":
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Not rich's tracebacks: they print all local variables, passwords too, and take long to make on the event loop.
        plain = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    logging.getLogger("aiokafka.consumer.group_coordinator").addFilter(_is_no_wait)
    logging.getLogger("asyncio").addFilter(_is_nobody_told)


def _is_no_wait(record: logging.LogRecord) -> bool:
    """aiokafka calls an error what it asks again a tenth of a second later: at every start of a new cluster, for one.

    A worker that does not get into its group in the end says so by `/readyz`.
    """
    cause = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return not (record.msg == "Group Coordinator Request failed: %s" and getattr(cause, "retriable", False))


def _is_nobody_told(record: logging.LogRecord) -> bool:
    """A producer that is fenced leaves futures of aiokafka's own behind, with the error that whoever sends gets too.

    They are futures: where a task of ours ends with an error that nobody looks at, asyncio says "Task".
    """
    from aiokafka.errors import KafkaError

    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, KafkaError) and str(record.msg).startswith("Future exception was never retrieved"))


def _adding(context: dict[str, object]) -> Processor:
    def add(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**context, **event}

    return add
