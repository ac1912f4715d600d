"""Settings: frozen models read once from `OUTBOX_*` in a process's `main`.

Every secret `OUTBOX_X` may also come from the file named by `OUTBOX_X_FILE` (mounted secrets); both at once is refused, because
one of them would silently lose. A wrong setting ends the process with one sentence (`read`). Source: design section 17,
`interfaces.md` section 9.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from outbox_domain.epoch import POSSIBLY_LOST_SECONDS

PREFIX = "OUTBOX_"
FILE_SUFFIX = "_FILE"
FILE_BYTES_MAX = 64 * 1024


class WrongSetting(Exception):
    """A setting is missing or wrong; the message is the sentence to show."""


class _Environment(PydanticBaseSettingsSource):
    """Takes `OUTBOX_X`, for a secret else the content of the file that `OUTBOX_X_FILE` names."""

    def __init__(self, settings_cls: type[BaseSettings], environment: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self._environment = environment

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = variable(field_name)
        direct = self._environment.get(name, "")
        path = self._environment.get(name + FILE_SUFFIX, "") if _is_secret(field.annotation) else ""
        if direct and path:
            raise WrongSetting(f"{name} and {name}{FILE_SUFFIX} are both set; keep one.")
        if path:
            return _content(name + FILE_SUFFIX, path), field_name, False
        # An empty variable counts as absent: charts and compose files set what they have no value for to "".
        return (direct or None), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {}
        for field_name, field in self.settings_cls.model_fields.items():
            value, _, _ = self.get_field_value(field, field_name)
            if value is not None:
                values[field_name] = value
        return values


def _is_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(_is_secret(part) for part in get_args(annotation))


def variable(field_name: str) -> str:
    """The environment variable of a field: `postgres_url` is `OUTBOX_POSTGRES_URL`."""
    return PREFIX + field_name.upper()


def _content(name: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise WrongSetting(f"{name} names {path}, which cannot be read: {error.strerror}.") from None
    if len(content) > FILE_BYTES_MAX:
        raise WrongSetting(f"{name} names {path}, which is larger than {FILE_BYTES_MAX} bytes.")
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        raise WrongSetting(f"{name} names {path}, which is not text.") from None


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the constructor is given counts; `read` gives it the environment."""
        return (init_settings,)


SettingsType = TypeVar("SettingsType", bound=_Settings)


def read(model: type[SettingsType], environment: Mapping[str, str] | None = None) -> SettingsType:
    """Read one model of settings.

    Args:
        model: which one.
        environment: the variables; those of the process unless given.

    Raises:
        WrongSetting: with one sentence that names the variable. The value is never in it.
    """
    source = _Environment(model, os.environ if environment is None else environment)
    try:
        return model(**source())
    except ValidationError as error:
        raise WrongSetting(_sentence(model, error)) from None


def read_or_exit(model: type[SettingsType], environment: Mapping[str, str] | None = None) -> SettingsType:
    """Read one model of settings in a `main`; a wrong setting ends the process with its sentence and exit status 1."""
    try:
        return read(model, environment)
    except WrongSetting as wrong:
        raise SystemExit(str(wrong)) from None


def _sentence(model: type[_Settings], error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return reason
    name = variable(str(first["loc"][0]))
    if first["type"] == "missing":
        secret = _is_secret(model.model_fields[str(first["loc"][0])].annotation)
        return f"{name} (or {name}{FILE_SUFFIX}) is not set." if secret else f"{name} is not set."
    return f"{name} is wrong: {reason[0].lower()}{reason[1:]}."


def _url_of(*schemes: str) -> AfterValidator:
    def check(value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            scheme = urlsplit(value.get_secret_value()).scheme
            if scheme not in schemes:
                raise ValueError(f"it must begin with {' or '.join(name + '://' for name in schemes)}")
        return value

    return AfterValidator(check)


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


PostgresUrl = Annotated[SecretStr, _url_of("postgresql", "postgres")]
RedisUrl = Annotated[SecretStr | None, BeforeValidator(_empty_is_none), _url_of("redis", "rediss", "unix")]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400)]


class PostgresSettings(_Settings):
    """Where Postgres is and how many connections one process takes."""

    postgres_url: PostgresUrl = Field(description="Postgres as this deployable's role; may lead through PgBouncer.")
    postgres_direct_url: PostgresUrl | None = Field(
        default=None, description="Postgres without a pooler, for LISTEN; the same as the other unless set."
    )
    postgres_pool_min: int = Field(default=2, ge=0, le=1000, description="Connections kept open by one process.")
    postgres_pool_max: int = Field(default=16, ge=1, le=1000, description="Connections one process opens at most.")
    postgres_connect_seconds: Seconds = Field(default=5.0, description="How long opening a connection may take.")
    postgres_command_seconds: Seconds = Field(default=30.0, description="How long one statement may take.")
    postgres_start_seconds: Seconds = Field(
        default=30.0, description="How long a starting process waits for Postgres before it gives up."
    )
    postgres_statement_cache: int = Field(
        default=256, ge=0, le=10000, description="Prepared statements per connection; 0 behind a pooler that cannot keep them."
    )

    @property
    def listen_url(self) -> str:
        """The DSN that LISTEN goes over."""
        return (self.postgres_direct_url or self.postgres_url).get_secret_value()

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.postgres_pool_min > self.postgres_pool_max:
            raise ValueError("OUTBOX_POSTGRES_POOL_MIN is above OUTBOX_POSTGRES_POOL_MAX.")
        return self


class RedisSettings(_Settings):
    """Where Redis is, if there is one; it carries hints only."""

    redis_url: RedisUrl = Field(default=None, description="Redis; without it wake-ups go by NOTIFY and the sweep.")
    redis_prefix: str = Field(
        default="outbox", pattern="^[a-zA-Z0-9_.-]{1,40}$", description="Begins the names of our channels and queue in Redis."
    )
    redis_connect_seconds: Seconds = Field(default=0.5, description="How long a connection to Redis may take.")
    redis_command_seconds: Seconds = Field(default=1.0, description="How long a command to Redis may take.")
    redis_poll_seconds: Seconds = Field(
        default=0.1, description="How often a doorbell looks into Redis when no message kicks it."
    )


class TelemetrySettings(_Settings):
    """Logs and metrics of one process; traces follow the standard `OTEL_*` variables."""

    log_level: Annotated[str, BeforeValidator(lambda value: str(value).lower())] = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="The least level that is written."
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address the metrics and health port binds to.")
    metrics_port: Port = Field(default=0, description="Port of metrics and health; 0 takes a free one.")
    metrics_port_file: Path | None = Field(default=None, description="File to write the port to that was bound.")


class _Lifecycle(_Settings):
    """Times that the API and the worker must agree on."""

    wrapping_key: SecretStr = Field(description="32 bytes in base64 that wrap the data keys of organizations.")


class ApiSettings(_Lifecycle):
    """The API."""

    host: str = Field(default="127.0.0.1", description="Address the API binds to.")
    port: Port = Field(default=0, description="Port of the API; 0 takes a free one.")
    port_file: Path | None = Field(default=None, description="File to write the port to that was bound.")
    wait_seconds: Seconds = Field(default=25.0, description="How long a caller waits that names no time.")
    wait_seconds_max: Seconds = Field(default=60.0, description="How long a caller may wait at most.")
    waiting_callers_max: int = Field(
        default=3_000, ge=1, description="Callers who wait in one process at once; who comes beyond them is answered 202 at once."
    )
    lists_at_once_max: int = Field(
        default=4, ge=1, description="Lists that one process reads at once; tool calls need the other connections."
    )
    client_lease_seconds: Seconds = Field(
        default=10.0, description="The lease of a client's attempt, from one heartbeat to the next."
    )
    client_margin_seconds: Seconds = Field(
        default=5.0, description="How long after the handler's time limit a client's lease lasts at most, for its settlement."
    )
    body_seconds_max: Seconds = Field(default=30.0, description="How long a body may take to arrive.")
    body_bytes_max: int = Field(default=1 << 20, ge=1024, description="The largest body that is read.")
    body_depth_max: int = Field(default=64, ge=1, description="The deepest nesting of a body that is read.")
    drain_seconds: Seconds = Field(default=30.0, description="How long waiting callers are kept after SIGTERM.")


class WorkerSettings(_Lifecycle):
    """The worker."""

    worker_private_key: SecretStr = Field(description="PEM of the X25519 key that credentials are sealed to.")
    worker_slots: int = Field(default=64, ge=1, le=4096, description="Sends in flight at once in one process.")
    lease_seconds: Seconds = Field(default=10.0, description="The lease of an attempt as granted by the claim.")
    renew_seconds: Seconds = Field(default=3.0, description="How often a lease is renewed while an answer is awaited.")
    renew_margin_seconds: Seconds = Field(
        default=5.0, description="How long after the contract's deadline a lease is renewed at most."
    )
    send_by_seconds: Seconds = Field(
        default=5.0, description="From before the claim was sent until the last byte of the request has left."
    )
    pause_allowance_seconds: Seconds = Field(
        default=3.0, description="How late after it a write may end before it is reported as late."
    )
    sweep_seconds: Seconds = Field(default=1.0, description="How often due reservations are looked for.")
    drain_seconds: Seconds = Field(default=30.0, description="How long sends in flight are given after SIGTERM.")
    state_folder: Path | None = Field(
        default=None, description="Folder where a worker remembers how far the ledger is, on a disk that Postgres does not use."
    )
    epoch_check_seconds: Seconds = Field(
        default=5.0, description="How often the ledger is compared with what workers remember, and marked as known."
    )
    possibly_lost_seconds: float = Field(
        default=POSSIBLY_LOST_SECONDS,
        gt=0,
        le=10 * 366 * 86_400,
        description="For how long after the ledger lost its tail a key first seen is treated as possibly sent.",
    )
    answer_bytes_max: int = Field(default=1 << 20, ge=1024, description="The largest answer of a provider that is read.")

    @model_validator(mode="after")
    def _times(self) -> Self:
        # Design section 4: all bytes leave before the lease as granted has ended, renewals do not count.
        if self.send_by_seconds + self.pause_allowance_seconds > self.lease_seconds:
            raise ValueError("OUTBOX_SEND_BY_SECONDS and OUTBOX_PAUSE_ALLOWANCE_SECONDS together are above OUTBOX_LEASE_SECONDS.")
        if self.renew_seconds * 2 > self.lease_seconds:
            raise ValueError("OUTBOX_RENEW_SECONDS is above half of OUTBOX_LEASE_SECONDS.")
        return self
