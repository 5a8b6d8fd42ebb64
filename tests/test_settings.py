"""Settings: from the environment, checked together, and one clear line where one is wrong."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from rollcall.settings import Settings, SettingsError, load_settings, unknown_variables

ROOT = Path(__file__).parents[1]
URL = "postgresql+asyncpg://me:secret@db.example:5432/rollcall"


@pytest.fixture(autouse=True)
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ROLLCALL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ROLLCALL_BOOTSTRAP_SERVERS", "k1:9092,k2:9092")
    monkeypatch.setenv("ROLLCALL_DATABASE_URL", URL)


def test_two_settings_are_enough() -> None:
    settings = load_settings()
    assert settings.kafka_connection().bootstrap_servers == "k1:9092,k2:9092"
    assert settings.kafka_connection().security == {}
    assert (settings.database().url, settings.database().schema) == (URL, "rollcall")
    assert settings.topic_prefix == "rollcall."


def test_all_missing_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROLLCALL_BOOTSTRAP_SERVERS")
    monkeypatch.delenv("ROLLCALL_DATABASE_URL")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == "ROLLCALL_BOOTSTRAP_SERVERS is not set; ROLLCALL_DATABASE_URL is not set"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MAX_RECORDS", "0", "ROLLCALL_MAX_RECORDS: input should be greater than or equal to 1 (it is '0')"),
        ("MAX_RECORDS", "many", "ROLLCALL_MAX_RECORDS: input should be a valid integer"),
        ("TOPIC_PREFIX", "no blanks ", "ROLLCALL_TOPIC_PREFIX: "),
        ("LOG_LEVEL", "loud", "ROLLCALL_LOG_LEVEL: input should be 'debug', 'info', 'warning' or 'error'"),
        ("DATABASE_SCHEMA", "No-Schema", "not a schema name"),
        ("DATABASE_URL", "postgres://me:secret@db/x", "must begin with postgresql+asyncpg://"),
        ("DATABASE_URL", "postgresql+asyncpg://me:secret/word@db/x", "with user and password percent-encoded"),
        ("SASL_USERNAME", "me", "ROLLCALL_SECURITY_PROTOCOL is PLAINTEXT"),
        ("SECURITY_PROTOCOL", "SASL_SSL", "needs ROLLCALL_SASL_USERNAME and ROLLCALL_SASL_PASSWORD"),
        ("SSL_CAFILE", "/ca.pem", "ROLLCALL_SECURITY_PROTOCOL is PLAINTEXT"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_without_any_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"ROLLCALL_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_sasl_over_tls_reaches_the_kafka_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLCALL_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("ROLLCALL_SASL_MECHANISM", "SCRAM-SHA-512")
    monkeypatch.setenv("ROLLCALL_SASL_USERNAME", "me")
    monkeypatch.setenv("ROLLCALL_SASL_PASSWORD", "secret")
    monkeypatch.setenv("ROLLCALL_SSL_CHECK_HOSTNAME", "false")
    settings = load_settings()
    security = dict(settings.kafka_connection().security)
    context = security.pop("ssl_context")
    assert isinstance(context, ssl.SSLContext)
    assert not context.check_hostname
    assert security == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "me",
        "sasl_plain_password": "secret",
    }
    assert "secret" not in repr(settings)


def test_a_certificate_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLCALL_SECURITY_PROTOCOL", "SSL")
    monkeypatch.setenv("ROLLCALL_SSL_CAFILE", "/nowhere/ca.pem")
    with pytest.raises(SettingsError, match=r"/nowhere/ca\.pem"):
        load_settings().kafka_connection()


def test_another_process_gets_the_very_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given = load_settings(
        security_protocol="SASL_PLAINTEXT", sasl_username="me", sasl_password="secret", max_records=7, topic_prefix=""
    )
    for name, value in given.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == given


def test_variables_that_are_no_settings_are_told_with_what_may_be_meant_and_without_their_values() -> None:
    given = {
        "ROLLCALL_DATABASE_SHEMA": "secret",
        "ROLLCALL_TOPIC_PREFX": "secret",
        "ROLLCALL_XYZ": "secret",
        "PATH": "/bin",
        "ROLLCALL_API_HOST": "127.0.0.1",
    }
    assert unknown_variables(given) == [
        "ROLLCALL_DATABASE_SHEMA (is ROLLCALL_DATABASE_SCHEMA meant?)",
        "ROLLCALL_TOPIC_PREFX (is ROLLCALL_TOPIC_PREFIX meant?)",
        "ROLLCALL_XYZ",
    ]


def test_variables_that_others_read_are_no_misspelt_settings() -> None:
    of_kubernetes = {
        "ROLLCALL_PORT": "tcp://10.0.0.1:8080",
        "ROLLCALL_SERVICE_HOST": "10.0.0.1",
        "ROLLCALL_SERVICE_PORT_HTTP": "8080",
        "ROLLCALL_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    of_others = {"ROLLCALL_FAILPOINT": "", "ROLLCALL_READY_FILE": "f", "ROLLCALL_API_URL": "u", "ROLLCALL_API_KEY": "k"}
    of_tests = {"ROLLCALL_TEST_CONTAINERS": "1", "ROLLCALL_REQUIRE_BROWSER": "1"}
    every_setting = {f"ROLLCALL_{name.upper()}": "x" for name in Settings.model_fields}
    assert unknown_variables(of_kubernetes | of_others | of_tests | every_setting) == []


def test_the_address_that_kubernetes_gives_for_a_service_is_not_the_apis_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLCALL_API_PORT", "tcp://10.0.0.1:80")
    assert load_settings().api_port == 8080
    monkeypatch.setenv("ROLLCALL_API_PORT", "8o8o")
    with pytest.raises(SettingsError, match=r"ROLLCALL_API_PORT: .*it is '8o8o'"):
        load_settings()


def test_such_an_address_does_not_silently_replace_the_metrics_port_of_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROLLCALL_METRICS_PORT", "tcp://10.0.0.2:9000")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == (
        "ROLLCALL_METRICS_PORT: this is the address that Kubernetes gives each pod for a service called"
        " rollcall-metrics, in place of a port: set `enableServiceLinks: false` in the pod's spec, or the port in its"
        " `env` (it is 'tcp://10.0.0.2:9000')"
    )


def test_a_process_says_at_its_start_which_settings_it_does_not_know() -> None:
    away = {"ROLLCALL_DATABASE_URL": "postgresql+asyncpg://127.0.0.1:1/db", "ROLLCALL_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rollcall", "migrate"],
        env={**os.environ, **away, "PYTHONPATH": str(ROOT), "ROLLCALL_DATABASE_SHEMA": "other"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    warning, error = done.stderr.splitlines()
    assert "no such settings, ignored: ROLLCALL_DATABASE_SHEMA (is ROLLCALL_DATABASE_SCHEMA meant?)" in warning
    assert error.startswith("rollcall: PostgreSQL at 127.0.0.1:1")


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("command", ["run", "worker", "relay", "clock", "migrate"])
def test_a_command_with_a_wrong_setting_ends_with_exit_code_2_and_one_line(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rollcall", command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ROLLCALL_MAX_RECORDS": "-1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("rollcall: ROLLCALL_MAX_RECORDS: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_option_ends_with_exit_code_2_and_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rollcall", "worker", "--no-such-option"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert "Traceback" not in done.stderr
