"""Kafka: the topics and their settings, and what we may do there."""

from collections.abc import AsyncIterator, Iterator, Mapping

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupAuthorizationFailedError

from rollcall.checkup.check import Check, noted, ok, wrong
from schemas.topics import Topics
from streams import permissions
from streams.observing import partitions_of
from streams.permissions import Operations
from streams.topics import TopicSettings, configs_of, differences, unusable, wanted

NEEDED_ON_TOPICS = frozenset({"Read", "Write", "Describe", "DescribeConfigs"})
NEEDED_ON_GROUP = frozenset({"Read", "Describe"})
_CHANNELS = ("events", "dead-letters")
_TRANSACTIONS_TOPIC = "__transaction_state"


async def topic_checks(admin: AIOKafkaAdminClient, topics: Topics) -> AsyncIterator[Check]:
    """Each topic: there, and set so that it serves."""
    settings = wanted(topics)
    present = set(await admin.list_topics())
    configs = await configs_of(admin, [name for name in settings if name in present])
    for name, setting in settings.items():
        if name not in present:
            yield wrong(f"topic {name}", "is not there, or may not be seen: workers and relay make it when they start")
            continue
        partitions = len(await partitions_of(admin, name))
        for each in _topic(name, setting, partitions, configs.get(name, "not said")):
            yield each


def _topic(name: str, setting: TopicSettings, partitions: int, actual: Mapping[str, str] | str) -> Iterator[Check]:
    what = f"topic {name}"
    if isinstance(actual, str):
        yield noted(what, f"its settings can't be read, so are not checked: {actual} (grant DescribeConfigs)")
        return
    if (reason := unusable(name, setting, actual)) is not None:
        yield wrong(what, reason)
        return
    found = list(differences(name, setting, actual))
    for each in found:
        yield noted(what, f"{each.setting} is {each.is_}, wanted is {each.wanted}: {each.cost}")
    if not found:
        yield ok(what, f"{partitions} partitions, set as it should be")


async def permission_checks(
    admin: AIOKafkaAdminClient, topics: Topics, database_name: str | None
) -> AsyncIterator[Check]:
    """What we may do there, as far as a broker says it without our doing it."""
    present = set(await admin.list_topics())
    names = [name for name in wanted(topics) if name in present]
    cluster, on_topics = await permissions.on_topics(admin, names)
    lacking = [(f"topic {name}", NEEDED_ON_TOPICS - on_topics.get(name, NEEDED_ON_TOPICS)) for name in names]
    lacking.append((f"group {topics.consumer_group}", await _lacking_on_group(admin, topics)))
    missing = [f"{', '.join(sorted(operations))} on {what}" for what, operations in lacking if operations]
    if missing:
        yield wrong("permissions", f"Kafka does not allow {'; '.join(missing)}: grant it (README, what to grant)")
    elif not on_topics:
        yield noted("permissions", "this Kafka does not say what is allowed")
    else:
        yield ok("permissions", "read, write and describe are allowed on all topics, and the consumer group")
    if cluster is not None and "Create" not in cluster and len(names) < len(wanted(topics)):
        yield noted("permissions", "topics that are missing may have to be made by hand: Create is not allowed")
    if database_name is not None and _TRANSACTIONS_TOPIC in present:
        yield await _transactional_ids(
            admin, [topics.relay_transactional_id(channel, database_name) for channel in _CHANNELS]
        )


async def _lacking_on_group(admin: AIOKafkaAdminClient, topics: Topics) -> Operations:
    try:
        allowed = await permissions.on_group(admin, topics.consumer_group)
    except GroupAuthorizationFailedError:
        return NEEDED_ON_GROUP
    return frozenset() if allowed is None else NEEDED_ON_GROUP - allowed


async def _transactional_ids(admin: AIOKafkaAdminClient, names: list[str]) -> Check:
    for name in names:
        if (error := await permissions.on_transactional_id(admin, name)) is not None:
            return wrong(
                "transactional ids", f"of {name}, Kafka says: {error}; the relay needs Write and Describe on it"
            )
    return ok("transactional ids", "the relay's may be described; whether they may be used, only its start tells")
