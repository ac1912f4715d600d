"""What the provider is told of an effect's identity: the provider key and the marker, derived from names alone (ADR 0004)."""

from typing import Protocol

from outbox_domain.identity import Scope, marker, provider_key


class Named(Protocol):
    """A row that carries the names of an effect: a claimed attempt, or a look-up about one."""

    @property
    def organization(self) -> str:
        """The organization's name."""

    @property
    def project(self) -> str:
        """The project's name."""

    @property
    def environment(self) -> str:
        """The environment's name."""

    @property
    def connection(self) -> str:
        """The connection's name."""

    @property
    def tool(self) -> str:
        """The tool."""

    @property
    def scope(self) -> str:
        """`environment`, or `run:` and the lineage's id."""

    @property
    def lineage_name(self) -> str | None:
        """The caller's name of the root run."""

    @property
    def operation_key(self) -> str:
        """The business identity of the effect."""

    @property
    def occurrence(self) -> int:
        """Which intended repetition it is."""


def provider_key_of(row: Named, secret: bytes, generation: int) -> str:
    """The provider key of an effect in a generation."""
    return provider_key(
        secret,
        scope=_scope(row),
        key_scope=_key_scope(row),
        operation_key=row.operation_key,
        occurrence=row.occurrence,
        generation=generation,
    )


def marker_of(row: Named, secret: bytes, attempt: int | None = None) -> str:
    """The marker of an effect, the same in every generation; or that of one attempt at it, where each has its own."""
    return marker(
        secret,
        scope=_scope(row),
        key_scope=_key_scope(row),
        operation_key=row.operation_key,
        occurrence=row.occurrence,
        attempt=attempt,
    )


def _scope(row: Named) -> Scope:
    return Scope(
        organization=row.organization,
        project=row.project,
        environment=row.environment,
        connection=row.connection,
        tool=row.tool,
    )


def _key_scope(row: Named) -> str:
    return "environment" if row.scope == "environment" else f"run:{row.lineage_name}"
