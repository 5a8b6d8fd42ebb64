"""Creates Rollcall's topics with explicit settings, and checks those it finds."""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    BrokerNotAvailableError,
    ClusterAuthorizationFailedError,
    InvalidConfigurationError,
    InvalidPartitionsError,
    InvalidReplicationAssignmentError,
    InvalidRequestError,
    InvalidTopicError,
    KafkaError,
    LeaderNotAvailableError,
    PolicyViolationError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnsupportedVersionError,
    for_code,
)

from schemas.topics import MAX_RECORD_BYTES, Topics
from streams.kafka import KafkaConnection, high_watermarks, started

EVENTS_PARTITIONS = 12
ADMIN_TIMEOUT_S = 90.0
_OTHER_PARTITIONS = 3
_DAY_MS = 24 * 3600 * 1000

# Answers that no waiting changes. Not among them: too few brokers for the replication factor, which is what a cluster
# says while its brokers start, and codes that aiokafka does not know, as that of a quota.
_REFUSALS = (
    ClusterAuthorizationFailedError,
    InvalidConfigurationError,
    InvalidPartitionsError,
    InvalidReplicationAssignmentError,
    InvalidRequestError,
    InvalidTopicError,
    PolicyViolationError,
    TopicAuthorizationFailedError,
    UnsupportedVersionError,
)

log = structlog.get_logger(__name__)


class UnusableTopicError(Exception):
    """A topic can't be worked on, or not be created; the message says why and what to do."""


@dataclass(frozen=True)
class TopicSettings:
    """How a topic is created; on one that exists, ``costs`` names what is checked and what a difference costs."""

    partitions: int
    configs: dict[str, str]
    costs: dict[str, str]


@dataclass(frozen=True)
class Difference:
    """A setting that a topic has otherwise, and what that costs."""

    setting: str
    is_: str
    wanted: str
    cost: str


def wanted(topics: Topics) -> dict[str, TopicSettings]:
    """The settings of every topic, by name."""
    outputs = {"message.timestamp.type": "LogAppendTime"}
    compacted = TopicSettings(
        _OTHER_PARTITIONS,
        {**outputs, "cleanup.policy": "compact"},
        {"cleanup.policy": "events older than its retention are lost to new consumers"},
    )
    kept = TopicSettings(
        _OTHER_PARTITIONS,
        {**outputs, "cleanup.policy": "delete", "retention.ms": str(30 * _DAY_MS)},
        {"cleanup.policy": "compaction leaves only the last of what is asked or said of a batch"},
    )
    return {
        topics.events: TopicSettings(
            EVENTS_PARTITIONS,
            {
                "message.timestamp.type": "LogAppendTime",
                "cleanup.policy": "delete",
                "retention.ms": str(30 * _DAY_MS),
                "max.message.bytes": str(MAX_RECORD_BYTES),
            },
            {
                "cleanup.policy": "results would vanish from the log before and after they are read",
                "message.timestamp.type": "times of batches are then the producers' clocks, which may be wrong",
                "retention.ms": "records that an outage outlasts are lost, and history can be replayed no further back",
                "max.message.bytes": "larger records may be neither forwarded nor published as dead letters",
            },
        ),
        topics.finalized: compacted,
        topics.summaries: compacted,
        topics.alerts: kept,
        topics.requests: kept,
        topics.dead_letters: TopicSettings(
            _OTHER_PARTITIONS,
            {
                **outputs,
                "cleanup.policy": "delete",
                "retention.ms": str(30 * _DAY_MS),
                "max.message.bytes": str(2 * 1024 * 1024),
            },
            {
                "cleanup.policy": "a broken record without a key could never be published there",
                "max.message.bytes": "large records that could not be taken can't be published as dead letters",
            },
        ),
    }


async def ensure_topics(kafka: KafkaConnection, topics: Topics) -> int:
    """Create missing topics, check the others; returns the partition count of the input topic.

    What was created takes records by then: whoever waits for Rollcall to be ready may publish.

    Raises UnusableTopicError (one compacted that must not be, or that may not be created) and KafkaError (no broker, or
    too few of them).
    """
    async with asyncio.timeout(ADMIN_TIMEOUT_S), started(kafka.admin()) as admin:
        await _ensure(kafka, admin, wanted(topics))
        return await _partition_count(admin, topics.events)


async def ensure_some(kafka: KafkaConnection, topics: Topics, names: Collection[str]) -> None:
    """Create those of these topics that are missing, check the others. Raises as ``ensure_topics`` does."""
    async with asyncio.timeout(ADMIN_TIMEOUT_S), started(kafka.admin()) as admin:
        await _ensure(kafka, admin, {name: setting for name, setting in wanted(topics).items() if name in names})


async def _ensure(kafka: KafkaConnection, admin: AIOKafkaAdminClient, settings: dict[str, TopicSettings]) -> None:
    existing = set(await admin.list_topics())
    missing = {name: setting for name, setting in settings.items() if name not in existing}
    if missing:
        await _create(admin, missing)
        # Until each partition's leader answers for it, a moment after the brokers have named it. In between one before
        # 4.5 refuses a producer's first request and takes its next: of several in flight the first is then lost for
        # good, which librdkafka reports as delivered (KAFKA-15591; seen with it and 4.2).
        await high_watermarks(kafka, missing)
    await _check(admin, {name: setting for name, setting in settings.items() if name not in missing})


async def log_identity(kafka: KafkaConnection, topics: Topics) -> str:
    """What tells the input log from every other, also from copies: its cluster and its topic. Raises KafkaError."""
    async with asyncio.timeout(ADMIN_TIMEOUT_S), started(kafka.admin()) as admin:
        return f"{(await admin.describe_cluster())['cluster_id']}/{topics.events}"


async def _create(admin: AIOKafkaAdminClient, missing: dict[str, TopicSettings]) -> None:
    replication = await _default_replication(admin)
    new = [
        NewTopic(name, setting.partitions, replication, topic_configs=setting.configs)
        for name, setting in missing.items()
    ]
    response = await admin.create_topics(new)
    for name, code, *detail in response.topic_errors:
        if code not in (0, TopicAlreadyExistsError.errno):
            raise _not_created(name, for_code(code), detail[0] if detail else None)
        log.info("topic created", topic=name)


def _not_created(name: str, error: type[KafkaError], detail: str | None) -> Exception:
    why = f"topic {name} cannot be created: {detail or error.__name__}"
    return UnusableTopicError(why) if issubclass(error, _REFUSALS) else error(why)


async def _default_replication(admin: AIOKafkaAdminClient) -> int:
    """The cluster's ``default.replication.factor``: its operator has said how safe a topic should be."""
    brokers = (await admin.describe_cluster())["brokers"]
    if not brokers:
        raise BrokerNotAvailableError("the cluster names no broker yet")
    broker = str(brokers[0]["node_id"])
    for response in await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, broker)]):
        for code, _, _, _, entries in response.resources:
            for entry in entries if code == 0 else ():
                if entry[0] == "default.replication.factor" and entry[1]:
                    return int(entry[1])
    log.warning("default.replication.factor can't be read (grant DescribeConfigs on the cluster): topics get one copy")
    return 1


async def configs_of(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, dict[str, str] | str]:
    """What topics that exist are set to; of one whose settings can't be read, why. Raises KafkaError."""
    found: dict[str, dict[str, str] | str] = {}
    for response in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names]):
        for code, message, _, name, entries in response.resources:
            found[name] = {entry[0]: entry[1] for entry in entries} if code == 0 else message or for_code(code).__name__
    return found


def unusable(name: str, setting: TopicSettings, actual: Mapping[str, str]) -> str | None:
    """Why nothing can be done with a topic as it is, and what to do; None where something can."""
    if setting.configs.get("cleanup.policy") == "delete" and "compact" in actual.get("cleanup.policy", ""):
        return f"topic {name} is compacted: {setting.costs['cleanup.policy']}; set cleanup.policy=delete"
    return None


def differences(name: str, setting: TopicSettings, actual: Mapping[str, str]) -> Iterator[Difference]:
    """Where a topic is set otherwise than Rollcall would, for the worse."""
    for key, cost in setting.costs.items():
        want, have = setting.configs[key], actual.get(key)
        if have is not None and not _as_good(name.endswith("events"), key, want, have):
            yield Difference(key, have, want, cost)


async def _check(admin: AIOKafkaAdminClient, found: dict[str, TopicSettings]) -> None:
    if not found:
        return
    for name, actual in (await configs_of(admin, found)).items():
        if isinstance(actual, str):
            _warn("topic settings can't be read, so not checked", topic=name, reason=actual)
            continue
        if (reason := unusable(name, found[name], actual)) is not None:
            raise UnusableTopicError(reason)
        for each in differences(name, found[name], actual):
            _warn(
                "a topic is not set as Rollcall would",
                topic=name,
                setting=each.setting,
                is_=each.is_,
                wanted=each.wanted,
                cost=each.cost,
            )


@lru_cache(1_000)
def _warn(what: str, **about: str) -> None:
    """Once a process: the relay looks at its topics whenever it begins anew."""
    log.warning(what, **about)


def _as_good(is_input: bool, key: str, want: str, have: str) -> bool:
    """Whether a setting serves as well: longer retention always, larger messages on the way out."""
    if key == "retention.ms":
        return int(have) < 0 or int(have) >= int(want)
    if key == "max.message.bytes":
        # Kafka's own default is a few bytes above 1 MiB.
        return int(have) <= int(want) * 3 // 2 if is_input else int(have) >= int(want)
    return have == want


async def _partition_count(admin: AIOKafkaAdminClient, topic: str) -> int:
    # Freshly created topics take a moment to be known to every broker.
    for _ in range(100):
        for description in await admin.describe_topics([topic]):
            if description["error_code"] == 0 and description["partitions"]:
                return len(description["partitions"])
        await asyncio.sleep(0.1)
    raise LeaderNotAvailableError(f"topic {topic} is there, but no broker leads its partitions yet")
