"""Fills a database with what `outbox up` promises: an organization, its environment, keys, connections and tool contracts.

Everything is done again at each start and changes nothing that is already so.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import UUID

from outbox_domain import ids, scoped_key
from outbox_providers import catalog
from outbox_runtime import postgres, sealing
from outbox_runtime.settings import PostgresSettings, read
from outbox_runtime.vault import Vault, new_organization_keys
from outbox_standalone.data_folder import ENVIRONMENT, LocalKeys
from outbox_standalone.refusal import Refusal
from outbox_store import actors, connections, ledger_entries, migrate, organizations, scoped_keys, tool_contracts, webhooks_in

ORGANIZATION = "demo"
PROJECT = scoped_key.DEFAULT_PROJECT
OWNER = "owner"
AGENT = "agent"
CURRENCY = "EUR"
DATABASE = "outbox"
_LOCK = 7_021_978_402
_ROLE_PASSWORDS: Mapping[str, str] = {"outbox_api": "api_password", "outbox_worker": "worker_password"}


@dataclass(frozen=True, kw_only=True)
class ProviderAccount:
    """A provider's real account that replaces the sandbox provider.

    Attributes:
        provider: as tools name it.
        base_url: where its API is.
        credential: what the account is opened with; a test key.
    """

    provider: str
    base_url: str
    credential: str


@dataclass(frozen=True, kw_only=True)
class ServiceUrls:
    """How the services reach Postgres.

    Attributes:
        api: as the role `outbox_api`.
        worker: as the role `outbox_worker`.
        warning: what the person who started this should know, or None.
    """

    api: str
    worker: str
    warning: str | None


def with_role(url: str, role: str, password: str) -> str:
    """The same database's address for another role."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(role, safe='')}:{quote(password, safe='')}@{place}"))


@contextlib.asynccontextmanager
async def _pool(url: str) -> AsyncIterator[postgres.Pool]:
    """A small pool for the time of a start."""
    settings = read(
        PostgresSettings, {"OUTBOX_POSTGRES_URL": url, "OUTBOX_POSTGRES_POOL_MIN": "0", "OUTBOX_POSTGRES_POOL_MAX": "2"}
    )
    pool = await postgres.open_pool(settings, application_name="outbox-up")
    try:
        yield pool
    finally:
        await pool.close()


async def make_database(server_url: str, name: str = DATABASE) -> None:
    """Makes the database of an embedded server at its first start.

    Args:
        server_url: the superuser's address of another database of the server.
        name: the database to make.
    """
    async with _pool(server_url) as pool, postgres.acquire(pool) as connection:
        if await connection.fetchval("select 1 from pg_database where datname = $1", name) is None:
            await connection.execute(f'create database "{name}"')


async def migrate_and_open(url: str, keys: LocalKeys, *, embedded: bool) -> ServiceUrls:
    """Brings the schema up to date and finds out how the services log in.

    The roles of an embedded server are ours. Those of a server that was given to us are used when they are new or already have
    our passwords; else the services use the given address themselves, which weakens what Postgres guards, and a warning says so.

    Raises:
        Refusal: the database cannot be migrated.
    """
    async with _pool(url) as pool, postgres.acquire(pool) as connection:
        present = {row["rolname"] for row in await connection.fetch("select rolname from pg_roles")}
        may_create = await connection.fetchval("select rolsuper or rolcreaterole from pg_roles where rolname = current_user")
        ours = embedded or (may_create and present.isdisjoint(migrate.ROLES))
        mode: Literal["create", "existing", "single"] = "create" if ours else "single"
        if not ours and present.issuperset(migrate.ROLES) and await _open_with(url, keys):
            mode = "existing"
        try:
            await migrate.migrate(url, roles=mode)
        except migrate.MigrationRefused as refused:
            raise Refusal(f"The database was not migrated: {refused}.") from refused
        if ours:
            for role, field in _ROLE_PASSWORDS.items():
                await migrate.set_role_password(cast(Any, connection), role, getattr(keys, field))
    if mode == "single":
        return ServiceUrls(
            api=url,
            worker=url,
            warning="The services share the role of OUTBOX_POSTGRES_URL; `outbox migrate --print-roles` shows how to part them.",
        )
    api, worker = (with_role(url, role, getattr(keys, field)) for role, field in _ROLE_PASSWORDS.items())
    return ServiceUrls(api=api, worker=worker, warning=None)


async def _open_with(url: str, keys: LocalKeys) -> bool:
    """Whether the roles that exist have the passwords of this data folder."""
    for role, field in _ROLE_PASSWORDS.items():
        try:
            async with _pool(with_role(url, role, getattr(keys, field))) as pool, postgres.acquire(pool) as connection:
                await connection.fetchval("select 1")
        except Exception as error:
            # SQLSTATE class 28 is "invalid authorization"; anything else is not about the password.
            if str(getattr(error, "sqlstate", "")).startswith("28"):
                return False
            raise
    return True


def _new_id() -> UUID:
    return ids.uuid7(time.time_ns() // 1_000_000, os.urandom(10))


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """Where the sandbox provider's events of one connection go, and what they are signed with."""

    connection_id: UUID
    secret: str


async def fill(url: str, keys: LocalKeys, *, sandbox_url: str, accounts: Mapping[str, ProviderAccount]) -> Mapping[str, Webhook]:
    """Makes the organization `demo` with everything a first call needs, or brings it up to date.

    Args:
        url: the database's owner's address.
        keys: the data folder's secrets.
        sandbox_url: where the sandbox provider answers.
        accounts: real accounts by provider; the others point at the sandbox provider.

    Returns:
        By provider, how the sandbox provider signs events of the connections whose contracts take them.

    Raises:
        Refusal: the database holds an organization `demo` that other keys have sealed.
    """
    async with _pool(url) as pool, postgres.transaction(pool) as connection:
        await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
        vault = await _organization(connection, keys)
        organization_id = vault.organization_id
        project_id = await organizations.create_project(connection, organization_id, _new_id(), PROJECT)
        environment_id = await organizations.create_environment(connection, organization_id, _new_id(), ENVIRONMENT, "allow")
        owner_id = await actors.ensure(connection, organization_id, _new_id(), "member", OWNER)
        await actors.make_member(connection, organization_id, owner_id, ["owner"])
        agent_id = await actors.ensure(connection, organization_id, _new_id(), "agent", AGENT)
        for text, actor_id, project in ((keys.admin_key, owner_id, None), (keys.agent_key, agent_id, project_id)):
            await _key(connection, organization_id, environment_id, project, actor_id, owner_id, text)
        contracts = catalog.shipped()
        documents = [(contract.tool, contract.version, contract.document()) for contract in contracts]
        try:
            await tool_contracts.install(connection, organization_id, documents)
        except tool_contracts.ContractChanged as changed:
            raise Refusal(f"The shipped tool contracts do not fit this database: {changed}.") from changed
        public_key = sealing.read_private_key(keys.worker_private_key.encode()).public_key()

        async def keep(row: connections.ConnectionRow, credential: str) -> UUID:
            connection_id = await connections.ensure(connection, row)
            info = f"credential:{organization_id}:{connection_id}".encode()
            sealed = sealing.seal_to(public_key, credential.encode(), info)
            await connections.seal_credential(connection, organization_id, connection_id, sealed)
            return connection_id

        taking = {contract.provider for contract in contracts if contract.webhook is not None}
        webhooks: dict[str, Webhook] = {}
        for provider in sorted({contract.provider for contract in contracts}):
            for row, credential in await _connection_rows(
                connection, organization_id, environment_id, provider, sandbox_url, accounts.get(provider)
            ):
                connection_id = await keep(row, credential)
                if provider in taking and row.name == provider:
                    # The same at every start, because it is made of what stays.
                    secret = f"whsec_{vault.digest('sandbox-webhook', connection_id.bytes).hex()}"
                    sealed = vault.seal_webhook_secret(connection_id, secret)
                    await webhooks_in.keep_secret(connection, organization_id, connection_id, sealed)
                    webhooks[provider] = Webhook(connection_id=connection_id, secret=secret)
        return webhooks


async def _organization(connection: postgres.Connection, keys: LocalKeys) -> Vault:
    """The keys of the organization, which this folder's wrapping key must open."""
    wrapping_key = sealing.WrappingKey.from_base64(keys.wrapping_key)
    found = await organizations.by_name(connection, ORGANIZATION)
    if found is None:
        organization_id = _new_id()
        wrapped = new_organization_keys(wrapping_key, organization_id)
        await organizations.create(
            connection,
            organizations.Organization(
                id=organization_id,
                name=ORGANIZATION,
                data_key_wrapped=wrapped.data_key,
                digest_key_wrapped=wrapped.digest_key,
                provider_key_secret_wrapped=wrapped.provider_key_secret,
            ),
        )
        return Vault.open(
            wrapping_key,
            organization_id,
            data_key_wrapped=wrapped.data_key,
            digest_key_wrapped=wrapped.digest_key,
            provider_key_secret_wrapped=wrapped.provider_key_secret,
        )
    try:
        return Vault.open(
            wrapping_key,
            found.id,
            data_key_wrapped=found.data_key_wrapped,
            digest_key_wrapped=found.digest_key_wrapped,
            provider_key_secret_wrapped=found.provider_key_secret_wrapped,
        )
    except sealing.SealBroken as error:
        raise Refusal(
            f"The organization {ORGANIZATION} in this database opens with the keys.json of another data folder only; "
            "use that --data-dir or another database."
        ) from error


async def _key(
    connection: postgres.Connection,
    organization_id: UUID,
    environment_id: UUID,
    project_id: UUID | None,
    actor_id: UUID,
    owner_id: UUID,
    text: str,
) -> None:
    """Stores the digest of one of the folder's scoped keys, with the ledger entry that every new key has."""
    parsed = scoped_key.parse(text)
    if await scoped_keys.by_id(connection, parsed.key_id) is not None:
        return
    await scoped_keys.insert(
        connection,
        scoped_keys.NewKey(
            organization_id=organization_id,
            id=parsed.key_id,
            environment_id=environment_id,
            project_id=project_id,
            run=None,
            actor_id=actor_id,
            providers=None,
            tools=None,
            expires_at=None,
            secret_digest=scoped_key.digest(parsed.secret),
            created_by=owner_id,
        ),
    )
    await ledger_entries.append(
        connection,
        ledger_entries.NewEntry(
            organization_id=organization_id,
            environment_id=environment_id,
            kind="scoped-key-created",
            actor_chain=[f"member:{OWNER}"],
            detail={"id": parsed.key_id, "actor_id": str(actor_id), "by": "outbox up"},
        ),
    )


async def _connection_rows(
    connection: postgres.Connection,
    organization_id: UUID,
    environment_id: UUID,
    provider: str,
    sandbox_url: str,
    account: ProviderAccount | None,
) -> list[tuple[connections.ConnectionRow, str]]:
    """The provider's connections with their credentials: one to the sandbox provider, one to a real account where it was named.

    They have different names, so that a doubt of the one is never recovered at the other. The new default comes last,
    because only one connection of a provider can be it.
    """
    sandbox = connections.ConnectionRow(
        organization_id=organization_id,
        id=_new_id(),
        environment_id=environment_id,
        provider=provider,
        name=provider,
        base_url=sandbox_url,
        fixed_headers={},
        currency=CURRENCY,
        allow_private=True,
        is_default=account is None,
    )
    sandbox_credential = f"sandbox-{provider}"
    if account is not None:
        real = dataclasses.replace(
            sandbox, id=_new_id(), name=f"{provider}-account", base_url=account.base_url, allow_private=False, is_default=True
        )
        return [(sandbox, sandbox_credential), (real, account.credential)]
    former = await connections.resolve(connection, organization_id, environment_id, provider, None)
    if former is not None and former.name != provider:
        await connections.ensure(connection, dataclasses.replace(former, is_default=False))
    return [(sandbox, sandbox_credential)]
