"""Log lines of programs that are ours (``rollcall-job``, children of a run): to stderr, stdout is for results."""

import sys

import structlog


def to_stderr() -> None:
    """Send log lines to stderr, as text for people on a terminal and as JSON else."""
    people = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if people else [structlog.processors.format_exc_info]),
            structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer(default=str),
        ],
        # Looked up for each line: a progress bar puts itself below what is printed.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
