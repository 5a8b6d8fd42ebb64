"""Writes the JSON Schema of every message to a folder: ``python -m schemas.export docs/schemas``."""

import json
import sys
from pathlib import Path
from typing import Any

from schemas.events import ADAPTERS
from schemas.published import PUBLISHED

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def documents() -> dict[str, str]:
    """File name to text, for every message in (``in.<type>.json``) and out (``out.<event>.json``)."""
    schemas: dict[str, dict[str, Any]] = {}
    for name, adapter in ADAPTERS.items():
        schemas[f"in.{name}"] = adapter.json_schema(mode="validation")
    for name, model in PUBLISHED.items():
        schemas[f"out.{name}"] = model.model_json_schema(mode="serialization")
    return {
        f"{name}.json": json.dumps({"$schema": _DIALECT, **schema}, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas.items()
    }


def main(folder: Path) -> None:
    """Bring ``folder`` up to date; files of messages that are no more are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    current = documents()
    for stale in folder.glob("*.json"):
        if stale.name not in current:
            stale.unlink()
    for name, text in current.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
