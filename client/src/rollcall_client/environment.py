"""A client from environment variables, named as the service's own."""

import ssl
from collections.abc import Mapping
from typing import Any

from rollcall_client.errors import ConfigurationError

PREFIX = "ROLLCALL_"


def options(environ: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of ``Rollcall`` that the environment gives.

    ``ROLLCALL_BOOTSTRAP_SERVERS`` is required; ``ROLLCALL_API_URL``, ``_API_KEY``, ``_TOPIC_PREFIX``,
    ``_SECURITY_PROTOCOL``, ``_SASL_MECHANISM``, ``_SASL_USERNAME``, ``_SASL_PASSWORD``, ``_SSL_CAFILE``,
    ``_SSL_CERTFILE``, ``_SSL_KEYFILE`` and ``_SSL_CHECK_HOSTNAME`` as for the service. Raises ConfigurationError.
    """
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environ.items() if name.startswith(PREFIX)}
    if not given.get("bootstrap_servers"):
        raise ConfigurationError(f"{PREFIX}BOOTSTRAP_SERVERS is not set: where is Kafka?")
    found: dict[str, Any] = {
        name: given[name] for name in ("bootstrap_servers", "api_url", "api_key", "topic_prefix") if name in given
    }
    if security := _security(given):
        found["kafka"] = security
    return found


def _security(given: Mapping[str, str]) -> dict[str, Any]:
    protocol = given.get("security_protocol", "PLAINTEXT")
    if protocol not in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"):
        raise ConfigurationError(f"{PREFIX}SECURITY_PROTOCOL is PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")
    security: dict[str, Any] = {} if protocol == "PLAINTEXT" else {"security_protocol": protocol}
    if protocol.startswith("SASL"):
        if "sasl_username" not in given or "sasl_password" not in given:
            raise ConfigurationError(f"{protocol} needs {PREFIX}SASL_USERNAME and {PREFIX}SASL_PASSWORD")
        security["sasl_mechanism"] = given.get("sasl_mechanism", "PLAIN")
        security["sasl_plain_username"] = given["sasl_username"]
        security["sasl_plain_password"] = given["sasl_password"]
    if protocol.endswith("SSL"):
        security["ssl_context"] = _tls(given)
    return security


def _tls(given: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=given.get("ssl_cafile"))
        if "ssl_certfile" in given:
            context.load_cert_chain(given["ssl_certfile"], given.get("ssl_keyfile"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"certificates for Kafka cannot be read: {error}") from error
    context.check_hostname = given.get("ssl_check_hostname", "true").lower() not in ("false", "0", "no", "off")
    return context
