"""The AsyncAPI 3 document of the topics, made of the messages' schemas.

Written by ``python -m schemas.asyncapi docs/asyncapi.json``.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from schemas import headers
from schemas.dead_letters import Reason
from schemas.events import ADAPTERS
from schemas.published import PUBLISHED
from schemas.topics import Topics

MEDIA_TYPE = "application/vnd.aai.asyncapi+json;version=3.0.0"

_REFERENCES = "#/components/schemas/{model}"
_BATCH_KEY = {"type": "string", "description": "The batch id, in UTF-8."}
_CLOUD_EVENT = {
    "type": "object",
    "description": "CloudEvents 1.0 in Kafka's binary mode; ce_id is the same however often an event is sent.",
    "required": ["ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "ce_subject", "content-type"],
    "properties": {
        "ce_specversion": {"type": "string", "const": "1.0"},
        "ce_id": {"type": "string"},
        "ce_type": {"type": "string"},
        "ce_source": {"type": "string"},
        "ce_time": {"type": "string", "format": "date-time"},
        "ce_subject": {
            "type": "string",
            "description": "The batch id; of a requested run its run id, of an alert about no batch its own id.",
        },
        "content-type": {"type": "string", "const": headers.CONTENT_TYPE_JSON},
        headers.TRACEPARENT: {"type": "string", "description": "W3C Trace Context, carried on from what caused it."},
    },
}
_UPSTREAM = {
    "type": "object",
    "properties": {headers.TRACEPARENT: {"type": "string", "description": "W3C Trace Context; carried on."}},
}
_DEAD_LETTER = {
    "type": "object",
    "description": "Where the record was read and why it could not be taken, beside the headers it had.",
    "required": [
        *(headers.DLT_TOPIC, headers.DLT_PARTITION, headers.DLT_OFFSET),
        *(headers.DLT_TIMESTAMP, headers.DLT_REASON, headers.DLT_MESSAGE),
    ],
    "properties": {
        headers.DLT_TOPIC: {"type": "string"},
        headers.DLT_PARTITION: {"type": "string", "pattern": "^[0-9]+$"},
        headers.DLT_OFFSET: {"type": "string", "pattern": "^[0-9]+$"},
        headers.DLT_TIMESTAMP: {"type": "string", "pattern": "^[0-9]+$", "description": "Milliseconds since 1970."},
        headers.DLT_REASON: {"type": "string", "enum": [reason.value for reason in Reason]},
        headers.DLT_MESSAGE: {"type": "string"},
    },
}

_OUT = {
    "finalized": (["batch.finalized"], "One event a batch and revision; compacted."),
    "summaries": (["batch.summarized"], "Statistics of finalized batches; compacted."),
    "alerts": (["alert"], "What an operator should look at."),
    "requests": (["batch.retry_requested", "job.run_requested"], "Retries and job runs asked of upstream services."),
}


def document(topics: Topics) -> dict[str, Any]:
    """The document of an installation's topics: what Rollcall receives from them, and what it sends."""
    kinds = [(name, "validation", adapter) for name, adapter in ADAPTERS.items()]
    kinds += [(name, "serialization", TypeAdapter(model)) for name, model in PUBLISHED.items()]
    references, definitions = TypeAdapter.json_schemas(kinds, ref_template=_REFERENCES)  # type: ignore[arg-type]
    payloads = {name: reference for (name, _), reference in references.items()}
    messages = {name: _message(name, payload, name in ADAPTERS) for name, payload in payloads.items()}
    messages["dead-letter"] = {
        "name": "dead-letter",
        "title": "A record that could not be taken",
        "summary": "The original key and bytes, whatever they are.",
        "contentType": "application/octet-stream",
        "payload": {"description": "The bytes as they came."},
        "headers": {"$ref": "#/components/schemas/DeadLetterHeaders"},
    }
    channels = {"events": _channel(topics.events, ADAPTERS, "Results and lifecycle, keyed by batch id: the one input.")}
    channels |= {name: _channel(f"{topics.prefix}{name}", names, about) for name, (names, about) in _OUT.items()}
    channels["dead-letters"] = _channel(topics.dead_letters, ["dead-letter"], "Records that could not be taken.")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Rollcall",
            "version": "1",
            "description": "Tells you when a batch is done, exactly once, and who did not answer.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": headers.CONTENT_TYPE_JSON,
        "channels": channels,
        "operations": {
            _operation(name): {
                "action": "receive" if name == "events" else "send",
                "channel": {"$ref": f"#/channels/{name}"},
                "summary": channel["description"],
            }
            for name, channel in channels.items()
        },
        "components": {
            "messages": messages,
            "schemas": definitions["$defs"]
            | {"CloudEventHeaders": _CLOUD_EVENT, "UpstreamHeaders": _UPSTREAM, "DeadLetterHeaders": _DEAD_LETTER},
        },
    }


def text(topics: Topics) -> str:
    """The document as it is written and served."""
    return json.dumps(document(topics), indent=2, ensure_ascii=False) + "\n"


def _message(name: str, payload: Mapping[str, Any], is_taken: bool) -> dict[str, Any]:
    return {
        "name": name,
        "title": name,
        "payload": payload,
        "headers": {"$ref": f"#/components/schemas/{'UpstreamHeaders' if is_taken else 'CloudEventHeaders'}"},
        "bindings": {"kafka": {"key": _BATCH_KEY, "bindingVersion": "0.5.0"}},
    }


def _channel(address: str, messages: Iterable[str], about: str) -> dict[str, Any]:
    return {
        "address": address,
        "description": about,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"kafka": {"topic": address, "bindingVersion": "0.5.0"}},
    }


def _operation(channel: str) -> str:
    return f"{'receive' if channel == 'events' else 'send'}-{channel}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(Topics()))
