"""What Kafka lets us do, asked of the broker without doing it.

A broker answers that with ``authorized_operations`` on topics, cluster and groups; without an authorizer, with all.
"""

from typing import Any, TypeAlias

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from streams.observing import until_coordinated

_OPERATIONS = {3: "Read", 4: "Write", 5: "Create", 8: "Describe", 10: "DescribeConfigs"}
_NOT_SAID = -(2**31)
_TRANSACTION = 1

Operations: TypeAlias = frozenset[str]


# aiokafka 0.14 knows metadata requests up to version 5; authorized operations came with 8 (KIP-430, Kafka 2.3).
class _MetadataResponse(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            Array(("node_id", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8"))),
        ),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("authorized_operations", Int32),
    )


class _MetadataRequestStruct(RequestStruct):  # type: ignore[misc]  # as above
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _MetadataRequest(Request[_MetadataRequestStruct]):  # type: ignore[misc]  # as above
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataRequestStruct]) -> _MetadataRequestStruct:
        return request_struct_class(self._topics, False, True, True)


# aiokafka 0.14 has version 3 of this one, but reads its answer as one of version 2.
class _DescribeGroupsRequestStruct(DescribeGroupsRequest_v3):  # type: ignore[misc]  # as above
    RESPONSE_TYPE = DescribeGroupsResponse_v3


class _DescribeGroupsRequest(Request[_DescribeGroupsRequestStruct]):  # type: ignore[misc]  # as above
    API_KEY = 15

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups

    def build(self, request_struct_class: type[_DescribeGroupsRequestStruct]) -> _DescribeGroupsRequestStruct:
        return request_struct_class(self._groups, True)


async def on_topics(admin: AIOKafkaAdminClient, topics: list[str]) -> tuple[Operations | None, dict[str, Operations]]:
    """What is allowed on the cluster (None: the broker doesn't say) and on each of these topics. Raises KafkaError."""
    response = await admin._send_request(_MetadataRequest(topics))
    found = response.to_object()
    on_each = {
        topic["topic"]: operations
        for topic in found["topics"]
        if topic["error_code"] == 0 and (operations := _operations(topic["authorized_operations"])) is not None
    }
    return _operations(found["authorized_operations"]), on_each


async def on_group(admin: AIOKafkaAdminClient, group_id: str) -> Operations | None:
    """What is allowed on a consumer group; None where the broker doesn't say. Raises KafkaError."""
    return await until_coordinated()(_on_group, admin, group_id)


async def _on_group(admin: AIOKafkaAdminClient, group_id: str) -> Operations | None:
    coordinator = await admin.find_coordinator(group_id)
    response: Any = await admin._send_request(_DescribeGroupsRequest([group_id]), coordinator)
    group = response.to_object()["groups"][0]
    if group["error_code"] != 0:
        raise for_code(group["error_code"])(group_id)
    return _operations(group["authorized_operations"])


async def on_transactional_id(admin: AIOKafkaAdminClient, transactional_id: str) -> KafkaError | None:
    """The error with which the broker refuses even to say who coordinates it; None where it says."""
    try:
        await admin.find_coordinator(transactional_id, _TRANSACTION)
    except KafkaError as error:
        return error
    return None


def _operations(bits: int) -> Operations | None:
    if bits == _NOT_SAID:
        return None
    return frozenset(name for code, name in _OPERATIONS.items() if bits >> code & 1)
