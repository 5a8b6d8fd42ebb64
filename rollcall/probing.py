"""Asks another process for its health, over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

TIMEOUT_S = 8.0

# A probe is for a process on this host; a proxy meant for the outside must not come between.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class UnhealthyError(RuntimeError):
    """A process does not answer, or says that something is wrong; the message is one line."""


def url_of(host: str, port: int, path: str) -> str:
    """Where a process that listens at `host` answers from this very host."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}{path}"


def probe(url: str) -> None:
    """Ask `/livez` or `/readyz`. Raises `UnhealthyError` with what is wrong."""
    try:
        with _opener.open(url, timeout=TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        with error:
            raise UnhealthyError(f"{url} says: {_said(error.read())}") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UnhealthyError(f"{url} does not answer: {reason}") from None


def _said(body: bytes) -> str:
    try:
        said = json.loads(body)
        return f"{said['status']} ({', '.join(f'{name}: {text}' for name, text in said['details'].items())})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:200].decode(errors="replace")
