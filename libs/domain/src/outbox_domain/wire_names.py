"""What the provider is told of an effect's identity: the provider key and the marker, derived from names alone (ADR 0004)."""

from dataclasses import dataclass

from outbox_domain.identity import Scope, marker, provider_key


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """The names of an effect, which a claimed attempt, a look-up about one and a lost one carry.

    Attributes:
        organization, project, environment, connection: their names.
        scope: `environment`, or `run:` and the lineage's id.
        lineage_name: the caller's name of the lineage's root run.
        operation_key: the business identity of the effect.
        occurrence: which intended repetition it is.
    """

    organization: str
    project: str
    environment: str
    connection: str
    tool: str
    scope: str
    operation_key: str
    occurrence: int
    lineage_name: str | None


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
