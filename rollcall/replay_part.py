"""One process of a replay: `python -m rollcall.replay_part`, started by `rollcall replay` and by nobody else."""

import sys

import uvloop

from rollcall.garbage import collect_seldom
from rollcall.logs import configure_logging
from rollcall.reaching import ServerError, naming
from rollcall.replaying import Part, fold_part
from rollcall.settings import load_settings
from store.positions import LostRaceError
from streams.anchoring import LogChangedError


def main() -> int:
    """Fold the part given as the argument; returns the exit code."""
    settings = load_settings()
    configure_logging("warning", settings.log_format, role="replay")
    collect_seldom()
    try:
        with naming(settings, "PostgreSQL"):
            uvloop.run(fold_part(settings, Part.decoded(sys.argv[1])))
    except LostRaceError:
        sys.stderr.write("rollcall: another replay works on the same schema\n")
        return 1
    except (ServerError, LogChangedError) as error:
        sys.stderr.write(f"rollcall: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
