"""All checks, one part after the other; a server that is away is a finding, and what needs it is left out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

from aiokafka.admin import AIOKafkaAdminClient

from rollcall.checkup.check import Check, Level, ok, wrong
from rollcall.checkup.kafka import permission_checks, topic_checks
from rollcall.checkup.postgres import leaders, privilege_checks, schema_check, stored_checks
from rollcall.checkup.reading import reading_checks
from rollcall.reaching import Server, ServerError, naming
from rollcall.settings import Settings
from schemas.topics import Topics
from store.connection import Connection
from store.leadership import database_name
from streams.kafka import KafkaConnection
from streams.observing import NoTopicError, administering

TIMEOUT_S = 120.0


async def everything(settings: Settings) -> list[Check]:
    """Every check that can be made now, in two minutes. Raises SettingsError."""
    checkup = _Checkup(settings, settings.kafka_connection(), Topics(settings.topic_prefix))
    try:
        async with asyncio.timeout(TIMEOUT_S), AsyncExitStack() as until_done:
            await checkup.connect(until_done)
            await checkup.look()
    except TimeoutError:
        checkup.found.append(wrong("doctor", f"given up after {TIMEOUT_S:g} s; the rest was not looked at"))
    return checkup.found


class _Checkup:
    def __init__(self, settings: Settings, kafka: KafkaConnection, topics: Topics) -> None:
        self.found: list[Check] = []
        self._settings = settings
        self._kafka = kafka
        self._topics = topics
        self._connection: Connection | None = None
        self._admin: AIOKafkaAdminClient | None = None

    async def connect(self, until_done: AsyncExitStack) -> None:
        try:
            with naming(self._settings, "PostgreSQL"):
                self._connection = await self._settings.database().connect("doctor")
                until_done.callback(self._connection.terminate)
        except ServerError as error:
            self.found.append(wrong("PostgreSQL", str(error)))
        try:
            with naming(self._settings, "Kafka"):
                self._admin = admin = await until_done.enter_async_context(administering(self._kafka))
                brokers = len((await admin.describe_cluster())["brokers"])
            self.found.append(ok("Kafka", f"{brokers} broker{'s' * (brokers != 1)} at {self._kafka.bootstrap_servers}"))
        except ServerError as error:
            self.found.append(wrong("Kafka", str(error)))

    async def look(self) -> None:
        connection, admin, topics = self._connection, self._admin, self._topics
        usable = False
        database = None
        if connection is not None:
            usable = "wrong" not in await self._add(
                "PostgreSQL", schema_check(connection, self._settings.database_schema)
            )
            with suppress(ServerError), naming(self._settings, "PostgreSQL"):
                database = await database_name(connection)
        if connection is not None and usable:
            await self._add("PostgreSQL", privilege_checks(connection))
        if admin is not None:
            await self._add("Kafka", topic_checks(admin, topics))
            await self._add("Kafka", permission_checks(admin, topics, database))
        if connection is not None and admin is not None and usable:
            await self._add("Kafka", reading_checks(connection, self._kafka, admin, topics))
        if connection is not None and usable:
            await self._add("PostgreSQL", leaders(connection, topics, self._settings.database_schema))
            await self._add("PostgreSQL", stored_checks(connection))

    async def _add(self, server: Server, part: AsyncIterator[Check]) -> set[Level]:
        """Make the checks of a part; returns their levels."""
        before = len(self.found)
        try:
            with naming(self._settings, server):
                async for each in part:
                    self.found.append(each)
        except (ServerError, NoTopicError) as error:
            self.found.append(wrong(server, str(error)))
        return {each.level for each in self.found[before:]}
