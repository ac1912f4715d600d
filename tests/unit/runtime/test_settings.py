"""Settings come from `OUTBOX_*` or from files, and a wrong one is one sentence."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from outbox_runtime.settings import (
    ApiSettings,
    PostgresSettings,
    RedisSettings,
    TelemetrySettings,
    WorkerSettings,
    WrongSetting,
    read,
    read_or_exit,
)

POSTGRES = {"OUTBOX_POSTGRES_URL": "postgresql://u:p%40ss@h:1/d"}
WORKER = {"OUTBOX_WRAPPING_KEY": "k", "OUTBOX_WORKER_PRIVATE_KEY": "pem"}


def test_the_defaults_are_those_published() -> None:
    """Lease 10 s, renewed every 3 s, send_by 5 s, 64 slots, waits of 25 s and at most 60 (interfaces, section 9)."""
    worker = read(WorkerSettings, WORKER)
    assert (worker.lease_seconds, worker.renew_seconds, worker.send_by_seconds, worker.worker_slots) == (10, 3, 5, 64)
    assert worker.renew_margin_seconds == 5
    api = read(ApiSettings, WORKER)
    assert (api.wait_seconds, api.wait_seconds_max, api.body_bytes_max, api.body_depth_max) == (25, 60, 1 << 20, 64)


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    """`OUTBOX_X_FILE` names a file whose content, without the newline at its end, is the value."""
    file = tmp_path / "url"
    file.write_text("postgresql://from-a-file/\n")
    settings = read(PostgresSettings, {"OUTBOX_POSTGRES_URL_FILE": str(file)})
    assert settings.postgres_url.get_secret_value() == "postgresql://from-a-file/"


def test_only_secrets_come_from_files(tmp_path: Path) -> None:
    """`OUTBOX_METRICS_PORT_FILE` names a file to write; it is never read as the port."""
    settings = read(TelemetrySettings, {"OUTBOX_METRICS_PORT_FILE": str(tmp_path / "port"), "OUTBOX_METRICS_PORT": "81"})
    assert (settings.metrics_port, settings.metrics_port_file) == (81, tmp_path / "port")


def test_a_value_and_a_file_at_once_are_refused(tmp_path: Path) -> None:
    """One of the two would silently lose, so neither does."""
    with pytest.raises(WrongSetting, match="OUTBOX_POSTGRES_URL and OUTBOX_POSTGRES_URL_FILE are both set"):
        read(PostgresSettings, {**POSTGRES, "OUTBOX_POSTGRES_URL_FILE": str(tmp_path)})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The sentence names the variable and the path."""
    with pytest.raises(WrongSetting, match=r"OUTBOX_POSTGRES_URL_FILE names .*/absent, which cannot be read"):
        read(PostgresSettings, {"OUTBOX_POSTGRES_URL_FILE": str(tmp_path / "absent")})


@pytest.mark.parametrize(
    ("model", "environment", "sentence"),
    [
        (PostgresSettings, {}, r"^OUTBOX_POSTGRES_URL \(or OUTBOX_POSTGRES_URL_FILE\) is not set\.$"),
        (PostgresSettings, {"OUTBOX_POSTGRES_URL": "mysql://canary"}, "OUTBOX_POSTGRES_URL is wrong: it must begin with"),
        (RedisSettings, {"OUTBOX_REDIS_URL": "http://canary"}, "OUTBOX_REDIS_URL is wrong: it must begin with"),
        (ApiSettings, {**WORKER, "OUTBOX_PORT": "70000"}, "OUTBOX_PORT is wrong: input should be less than"),
        (ApiSettings, {**WORKER, "OUTBOX_PORT": "canary"}, "OUTBOX_PORT is wrong: input should be a valid integer"),
        (TelemetrySettings, {"OUTBOX_LOG_LEVEL": "loud"}, "OUTBOX_LOG_LEVEL is wrong"),
        (WorkerSettings, {**WORKER, "OUTBOX_LEASE_SECONDS": "7"}, "together are above OUTBOX_LEASE_SECONDS"),
        (WorkerSettings, {**WORKER, "OUTBOX_RENEW_SECONDS": "6"}, "above half of OUTBOX_LEASE_SECONDS"),
    ],
)
def test_a_wrong_setting_is_one_sentence_without_its_value(
    model: type[PostgresSettings], environment: dict[str, str], sentence: str
) -> None:
    """The variable is named, the value never is, and it is one line."""
    with pytest.raises(WrongSetting, match=sentence) as wrong:
        read(model, environment)
    assert "canary" not in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_wrong_setting_ends_the_process_with_its_sentence() -> None:
    """`main` ends with the sentence instead of a traceback."""
    with pytest.raises(SystemExit) as ended:
        read_or_exit(PostgresSettings, {})
    assert ended.value.code == "OUTBOX_POSTGRES_URL (or OUTBOX_POSTGRES_URL_FILE) is not set."


def test_an_empty_variable_counts_as_absent() -> None:
    """A chart sets what it has no value for to the empty string: no Redis, default port."""
    assert read(RedisSettings, {"OUTBOX_REDIS_URL": ""}).redis_url is None
    assert read(ApiSettings, {**WORKER, "OUTBOX_PORT": ""}).port == 0


def test_secrets_are_not_printed() -> None:
    """A settings object may end up in a log line; its secrets do not."""
    assert "p%40ss" not in repr(read(PostgresSettings, POSTGRES))


def test_settings_cannot_be_changed() -> None:
    """They are read once; nothing changes them afterwards."""
    settings = read(PostgresSettings, POSTGRES)
    with pytest.raises(ValidationError):
        settings.postgres_pool_max = 3


def test_listen_goes_over_the_direct_url_where_there_is_one() -> None:
    """LISTEN does not work through a pooler in transaction mode; the direct URL bypasses it."""
    assert read(PostgresSettings, POSTGRES).listen_url == POSTGRES["OUTBOX_POSTGRES_URL"]
    direct = {**POSTGRES, "OUTBOX_POSTGRES_DIRECT_URL": "postgresql://direct/"}
    assert read(PostgresSettings, direct).listen_url == "postgresql://direct/"
