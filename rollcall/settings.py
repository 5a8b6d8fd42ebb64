"""Everything that can be set, read from the environment (`ROLLCALL_DATABASE_URL` and so on)."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from datetime import timedelta
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

import rollcall_native
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from rollcall.readiness import READY_FILE
from store import failpoints
from store.connection import Database
from streams.kafka import KafkaConnection, tls_context

ENV_PREFIX = "ROLLCALL_"

# Their values may hold a password: never echoed.
_UNSPOKEN = {"database_url", "sasl_password"}

# What is no setting but read: by processes of ours, by programs with our client, by the tests.
_READ_BY_OTHERS = {READY_FILE, failpoints.VARIABLE, "ROLLCALL_API_URL", "ROLLCALL_API_KEY", rollcall_native.SWITCH}
_OF_TESTS = ("ROLLCALL_TEST_", "ROLLCALL_REQUIRE_")
# Kubernetes gives a pod such ones for every service; ours may well be called rollcall.
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP|SCTP)|_PORT=\w+://")


class SettingsError(ValueError):
    """A setting is missing or wrong; the message is one line and names the environment variable."""


class Settings(BaseSettings):
    """Rollcall's settings; each is the environment variable of its name in capitals behind `ROLLCALL_`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    bootstrap_servers: Annotated[
        str,
        Field(min_length=1, description="Kafka brokers to begin with: `host:port`, several separated by commas."),
    ]
    database_url: Annotated[
        str,
        Field(
            repr=False,
            description="PostgreSQL 18 or newer: `postgresql+asyncpg://user:password@host:port/database`; TLS by "
            "`?sslmode=verify-full&sslrootcert=/path/ca.pem`.",
        ),
    ]
    topic_prefix: Annotated[
        str,
        Field(
            pattern=r"^[a-zA-Z0-9._-]{0,200}$",
            description="What the names of all topics, and of the consumer group, begin with.",
        ),
    ] = "rollcall."
    database_schema: Annotated[
        str, Field(description="The PostgreSQL schema of the tables; each topic prefix needs its own.")
    ] = "rollcall"

    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        Field(description="How to talk to Kafka."),
    ] = "PLAINTEXT"
    sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
        Field(description="How to authenticate to Kafka, where `ROLLCALL_SECURITY_PROTOCOL` begins with SASL."),
    ] = "PLAIN"
    sasl_username: Annotated[str | None, Field(description="User name for Kafka.")] = None
    sasl_password: Annotated[SecretStr | None, Field(description="Password for Kafka.")] = None
    ssl_cafile: Annotated[
        str | None,
        Field(description="Certificates of the authorities to trust for Kafka (PEM); the system's own by default."),
    ] = None
    ssl_certfile: Annotated[str | None, Field(description="Client certificate for Kafka (PEM).")] = None
    ssl_keyfile: Annotated[str | None, Field(description="Private key of the client certificate (PEM).")] = None
    ssl_check_hostname: Annotated[
        bool, Field(description="Whether a broker's certificate must carry the broker's host name.")
    ] = True

    max_records: Annotated[
        int, Field(ge=1, le=100_000, description="Records a worker folds and writes in one transaction, at most.")
    ] = 5_000
    batch_timeout_ms: Annotated[
        int, Field(ge=1, le=60_000, description="How long a worker waits for records before it looks again, in ms.")
    ] = 10
    failure_rate_limit: Annotated[
        float,
        Field(ge=0, le=1, description="A batch that ends with a greater share of its answers failed raises an alert."),
    ] = 0.5
    summary_timeout_s: Annotated[
        float, Field(gt=0, le=3_600, description="How long one statement of a batch's summary may take, in seconds.")
    ] = 300.0
    slow_after_s: Annotated[
        float,
        Field(
            ge=0, description="A batch open for longer, in seconds, raises an alert, unless its policy says otherwise."
        ),
    ] = 120.0
    stalled_after_s: Annotated[
        float,
        Field(ge=0, description="So does one without a result for so long, although all that was sent is read."),
    ] = 300.0
    never_opened_after_s: Annotated[
        float, Field(ge=0, description="So does one that is known only from results for so long.")
    ] = 60.0
    outbox_kept_days: Annotated[
        float, Field(ge=0, le=36_500, description="Days that published events stay in the table `outbox`.")
    ] = 7.0
    dead_letters_kept_days: Annotated[
        float,
        Field(ge=0, le=36_500, description="Days that published dead letters stay in the table `dead_letters`."),
    ] = 30.0

    api_host: Annotated[str, Field(min_length=1, description="The address the HTTP API listens on.")] = "127.0.0.1"
    api_port: Annotated[int, Field(ge=0, le=65_535, description="Its port; 0: any free one, which the log names.")] = (
        8080
    )
    auth: Annotated[
        Literal["on", "off"],
        Field(description="Whether the API asks for a key (`rollcall api-key create`); `off` only on loopback."),
    ] = "on"
    api_secure_cookies: Annotated[
        bool,
        Field(description="Whether browsers send the API's session cookie over TLS only: behind a proxy that ends it."),
    ] = False
    max_items: Annotated[
        int | None, Field(ge=1, description="Items a batch opened over HTTP may have, at most; no limit without.")
    ] = None
    api_max_body_bytes: Annotated[
        int, Field(ge=1024, le=1024**3, description="The largest request body the API reads, in bytes.")
    ] = 8 * 1024 * 1024
    api_max_streams: Annotated[
        int, Field(ge=0, le=100_000, description="Event streams (SSE) open at one time, at most.")
    ] = 1_000
    api_requests_per_second: Annotated[
        float, Field(gt=0, description="Requests a second and key, in the long run; twice as many at once.")
    ] = 100.0

    metrics_host: Annotated[
        str,
        Field(min_length=1, description="Where each process serves its metrics and health: an address of this host."),
    ] = "127.0.0.1"
    metrics_port: Annotated[
        int,
        Field(
            ge=0,
            le=65_000,
            description="The port for that; 0 takes any free one, which the log names. `rollcall run` serves its own "
            "health there, and its processes theirs on the ports behind it.",
        ),
    ] = 0

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="The least severe log lines shown.")
    ] = "info"
    log_format: Annotated[
        Literal["console", "json"], Field(description="Log lines for people or for machines, on stderr.")
    ] = "console"

    @field_validator("api_port", "metrics_port", mode="before")
    @classmethod
    def _but_for_kubernetes(cls, value: object, field: ValidationInfo) -> object:
        """A service called rollcall-api gives each pod a `ROLLCALL_API_PORT`: an address, and nobody's setting.

        It takes the place of what the image says, so only a port that the image leaves at its default is known.
        """
        name = str(field.field_name)
        if not _SERVICE_LINK.search(f"{_variable(name)}={value}"):
            return value
        if name == "api_port":
            return cls.model_fields[name].default
        raise ValueError(
            "this is the address that Kubernetes gives each pod for a service called rollcall-metrics, in place of a"
            " port: set `enableServiceLinks: false` in the pod's spec, or the port in its `env`"
        )

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        try:
            Database(self.database_url, self.database_schema)
        except ValueError as error:
            raise ValueError(f"{_variable('database_url')} or {_variable('database_schema')}: {error}") from None
        sasl = self.security_protocol.startswith("SASL")
        tls = self.security_protocol.endswith("SSL")
        if sasl and (self.sasl_username is None or self.sasl_password is None):
            raise ValueError(
                f"{_variable('security_protocol')}={self.security_protocol} needs "
                f"{_variable('sasl_username')} and {_variable('sasl_password')}"
            )
        if not sasl and (self.sasl_username is not None or self.sasl_password is not None):
            raise ValueError(
                f"a Kafka user or password is given, but {_variable('security_protocol')} is {self.security_protocol}"
            )
        if not tls and (self.ssl_cafile or self.ssl_certfile or self.ssl_keyfile):
            raise ValueError(
                f"certificates for Kafka are given, but {_variable('security_protocol')} is {self.security_protocol}"
            )
        if self.auth == "off" and not _is_loopback(self.api_host):
            raise ValueError(
                f"{_variable('auth')}=off leaves the API open to all who reach it, so it is for loopback only:"
                f" set {_variable('api_host')}=127.0.0.1 (it is {self.api_host!r}), or {_variable('auth')}=on"
            )
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError(f"{_variable('ssl_keyfile')} needs {_variable('ssl_certfile')}")
        return self

    @property
    def events_kept(self) -> timedelta:
        """How long published events stay in the outbox."""
        return timedelta(days=self.outbox_kept_days)

    @property
    def dead_letters_kept(self) -> timedelta:
        """How long published dead letters stay in their table."""
        return timedelta(days=self.dead_letters_kept_days)

    def kafka_connection(self) -> KafkaConnection:
        """How to reach Kafka. Raises `SettingsError` where a certificate cannot be read."""
        security: dict[str, Any] = {}
        if self.security_protocol != "PLAINTEXT":
            security["security_protocol"] = self.security_protocol
        if self.security_protocol.startswith("SASL") and self.sasl_password is not None:
            security["sasl_mechanism"] = self.sasl_mechanism
            security["sasl_plain_username"] = self.sasl_username
            security["sasl_plain_password"] = self.sasl_password.get_secret_value()
        if self.security_protocol.endswith("SSL"):
            security["ssl_context"] = self._tls_context()
        return KafkaConnection(self.bootstrap_servers, security)

    def database(self) -> Database:
        """How to reach PostgreSQL."""
        return Database(self.database_url, self.database_schema)

    def environment(self) -> dict[str, str]:
        """The environment variables that give another process these very settings.

        And the switch that has everything done in Python, where it is set.
        """
        without = {name: value for name, value in os.environ.items() if name == rollcall_native.SWITCH}
        return {_variable(name): _text(value) for name, value in self if value is not None} | without

    def _tls_context(self) -> ssl.SSLContext:
        try:
            return tls_context(
                cafile=self.ssl_cafile,
                certfile=self.ssl_certfile,
                keyfile=self.ssl_keyfile,
                check_hostname=self.ssl_check_hostname,
            )
        except (OSError, ssl.SSLError) as error:
            names = [self.ssl_cafile, self.ssl_certfile, self.ssl_keyfile]
            files = ", ".join(name for name in names if name)
            raise SettingsError(f"certificates for Kafka cannot be read ({files}): {error}") from error


def load_settings(**given: Any) -> Settings:
    """The settings of this process, `given` ones before the environment's.

    Raises `SettingsError` with one line that names every wrong or missing variable.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(dict(problem)) for problem in error.errors())) from error


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """The variables that look like settings and are none, each with the one that may be meant; never their values."""
    settings = [_variable(name) for name in Settings.model_fields]
    known = {*settings, *_READ_BY_OTHERS}
    return [
        f"{name} (is {close[0]} meant?)" if (close := get_close_matches(name, settings, n=1, cutoff=0.75)) else name
        for name, value in sorted(environment.items())
        if name.startswith(ENV_PREFIX)
        and name.upper() not in known
        and not name.startswith(_OF_TESTS)
        and not _SERVICE_LINK.search(f"{name}={value}")
    ]


def _sentence(problem: dict[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"{_variable(name)} is not set"
    got = "" if name in _UNSPOKEN else f" (it is {problem['input']!r})"
    return f"{_variable(name)}: {message[:1].lower()}{message[1:]}{got}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _variable(name: str) -> str:
    return ENV_PREFIX + name.upper()


def _text(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
