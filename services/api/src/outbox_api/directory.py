"""What the API knows of organizations without asking Postgres every time: keys, contracts, connections, runs, sealing keys.

Ages are short and named here. A revoked key reaches every process within a second (design section 11); a new contract or a
changed connection within five. What never changes (a contract's version, a run's lineage, an organization's keys) is kept as
long as there is room.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

import structlog

from outbox_api.cache import Cache
from outbox_domain import inline_contract, messages
from outbox_domain.contract import ToolContract
from outbox_domain.errors import OutboxError
from outbox_domain.scoped_key import DEFAULT_PROJECT, ScopedKey
from outbox_runtime.postgres import Pool, acquire, transaction
from outbox_runtime.sealing import WrappingKey
from outbox_runtime.vault import Vault
from outbox_store import connections, organizations, runs, scoped_keys, tool_contracts
from outbox_store.connections import ConnectionRow
from outbox_store.organizations import Environment
from outbox_store.runs import Run

log = structlog.stdlib.get_logger("outbox.api.directory")

KEY_AGE_SECONDS_MAX = 1.0
CATALOG_AGE_SECONDS_MAX = 5.0
UNKNOWN_AGE_SECONDS_MAX = 0.5
"""How old the list of contracts may be when a tool is said not to exist."""

KEYS_MAX = 10_000
ORGANIZATIONS_MAX = 1_000
CONTRACTS_MAX = 10_000
CONNECTIONS_MAX = 10_000
RUNS_MAX = 50_000

INLINE_MAX = 1_000
"""How many contracts an organization may bring along with its calls: no more than it has tools, in all their revisions."""

_CONNECTION_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,55}")


@dataclass(frozen=True, kw_only=True)
class _RunName:
    organization_id: UUID
    environment_id: UUID
    project_id: UUID
    name: str


@dataclass(frozen=True, kw_only=True)
class _ConnectionName:
    organization_id: UUID
    environment_id: UUID
    provider: str
    name: str | None


class Directory:
    """Cached reads of what a tool call is judged by."""

    def __init__(self, pool: Pool, wrapping_key: WrappingKey) -> None:
        """Reads from `pool`; `wrapping_key` opens the keys of organizations."""
        self._pool = pool
        self._wrapping_key = wrapping_key
        self._keys = Cache(self._read_key, age_seconds_max=KEY_AGE_SECONDS_MAX, size_max=KEYS_MAX)
        self._vaults = Cache(self._read_vault, age_seconds_max=None, size_max=ORGANIZATIONS_MAX)
        self._tools = Cache(self._read_tools, age_seconds_max=CATALOG_AGE_SECONDS_MAX, size_max=ORGANIZATIONS_MAX)
        self._contracts = Cache(self._read_contract, age_seconds_max=None, size_max=CONTRACTS_MAX)
        self._connections = Cache(self._read_connection, age_seconds_max=CATALOG_AGE_SECONDS_MAX, size_max=CONNECTIONS_MAX)
        self._environments = Cache(self._read_environment, age_seconds_max=CATALOG_AGE_SECONDS_MAX, size_max=ORGANIZATIONS_MAX)
        self._projects = Cache(self._read_project, age_seconds_max=CATALOG_AGE_SECONDS_MAX, size_max=ORGANIZATIONS_MAX)
        self._inline: dict[tuple[UUID, str, bytes], int] = {}
        self._runs: Cache[_RunName, Run | None] = Cache(self._read_run, age_seconds_max=None, size_max=RUNS_MAX)

    async def key(self, key_id: str) -> ScopedKey | None:
        """The scoped key of this id, at most a second old."""
        return await self._keys.get(key_id)

    async def vault(self, organization_id: UUID) -> Vault:
        """The organization's sealing keys.

        Raises:
            SealBroken: the wrapping key of this process does not open them.
        """
        return await self._vaults.get(organization_id)

    async def tools(self, organization_id: UUID) -> Mapping[str, ToolContract]:
        """The newest version of each tool that changes something; tools that only read make no reservations."""
        return await self._tools.get(organization_id)

    async def tool(self, organization_id: UUID, name: str) -> ToolContract | None:
        """The newest contract of a tool; a tool that was installed this moment is found."""
        found = (await self.tools(organization_id)).get(name)
        if found is None:
            found = (await self._tools.get(organization_id, age_seconds_max=UNKNOWN_AGE_SECONDS_MAX)).get(name)
        return found

    def tools_seen(self, organization_id: UUID) -> Mapping[str, ToolContract]:
        """The tools as they were read last, without asking Postgres."""
        return self._tools.kept(organization_id) or {}

    async def contract(self, organization_id: UUID, tool: str, version: int) -> ToolContract | None:
        """One version of a tool's contract, as a reservation pins it; None where this version of the program cannot read it.

        Raises:
            LookupError: it is not installed, which the reservation's foreign key rules out.
        """
        try:
            return await self._contracts.get((organization_id, tool, version))
        except (TypeError, ValueError):
            log.error("contract-unreadable", tool=tool, version=version)
            return None

    async def connection(self, key: ScopedKey, provider: str, name: str | None) -> ConnectionRow | None:
        """The provider's connection of this name in the key's environment, or its default."""
        return await self._connections.get(
            _ConnectionName(organization_id=key.organization_id, environment_id=key.environment_id, provider=provider, name=name)
        )

    async def client_connection(
        self, key: ScopedKey, provider: str, name: str | None, new_id: Callable[[], UUID]
    ) -> ConnectionRow | None:
        """The connection of what a client carries out under a contract of its own.

        It is the one that the call names, or the one that was made for such calls, or the provider's default; where there is none
        of them it is made, because it is no more than a name. The order keeps a key where it was first used.

        Raises:
            one of `AWAY`: Postgres is away.
        """
        own = _client_name(provider)
        found = await self.connection(key, provider, own if name is None else name)
        if found is None and name is None:
            found = await self.connection(key, provider, None)
        if found is not None or name is not None:
            return found
        of = _ConnectionName(organization_id=key.organization_id, environment_id=key.environment_id, provider=provider, name=own)
        async with acquire(self._pool) as connection:
            made = await connections.ensure_client(connection, key.organization_id, key.environment_id, provider, own, new_id())
        self._connections.put(of, made)
        return made

    async def install_inline(self, key: ScopedKey, vault: Vault, contract: ToolContract) -> ToolContract:
        """The installed version of a contract that came with a call; the same contract is the same version.

        Raises:
            OutboxError: `invalid-input`, where the tool has a contract already, or the organization too many inline ones.
        """
        if await self.tool(key.organization_id, contract.tool) is not None:
            raise _no_contract("no contract, because the tool has one")
        digest = vault.digest("inline-contract", contract.tool.encode(), inline_contract.content(contract))
        of = (key.organization_id, contract.tool, digest)
        version = self._inline.get(of)
        if version is None:
            async with transaction(self._pool) as tx:
                version = await tool_contracts.install_inline(
                    tx,
                    key.organization_id,
                    contract.tool,
                    contract.document(),
                    digest,
                    first_version=inline_contract.INLINE_VERSION_FIRST,
                    installed_max=INLINE_MAX,
                )
            if version is None:
                raise _no_contract(f"one of the {INLINE_MAX} inline contracts that this organization has already")
            if len(self._inline) >= CONTRACTS_MAX:
                self._inline.clear()
            self._inline[of] = version
        return contract.model_copy(update={"version": version})

    async def environment(self, key: ScopedKey) -> Environment:
        """The key's environment.

        Raises:
            LookupError: it is gone, which the key's foreign key rules out.
        """
        return await self._environments.get((key.organization_id, key.environment))

    async def project_id(self, key: ScopedKey) -> UUID:
        """The project that the key acts in.

        Raises:
            OutboxError: `out-of-scope`, when the organization has no project `default` and the key names none.
        """
        if key.project_id is not None:
            return key.project_id
        found = await self._projects.get(key.organization_id)
        if found is None:
            raise OutboxError(
                "out-of-scope",
                f"The organization has no project {DEFAULT_PROJECT!r}, and this key names no other.",
                dimension="project",
            )
        return found

    async def run(self, key: ScopedKey, project_id: UUID, name: str) -> Run | None:
        """The run of this name, if anybody has used it."""
        of = _RunName(organization_id=key.organization_id, environment_id=key.environment_id, project_id=project_id, name=name)
        # That there is none yet may change at any moment; a run that was found never changes.
        return await self._runs.get(of, age_seconds_max=None if self._runs.kept(of) is not None else 0.0)

    async def register_run(self, key: ScopedKey, project_id: UUID, name: str, new_id: UUID) -> Run:
        """The run of this name, registered with `new_id` when nobody has used it before."""
        async with acquire(self._pool) as connection:
            run = await runs.ensure(connection, key.organization_id, key.environment_id, project_id, name, new_id)
        self._runs.put(
            _RunName(organization_id=key.organization_id, environment_id=key.environment_id, project_id=project_id, name=name),
            run,
        )
        return run

    async def _read_key(self, key_id: str) -> ScopedKey | None:
        async with acquire(self._pool) as connection:
            return await scoped_keys.by_id(connection, key_id)

    async def _read_vault(self, organization_id: UUID) -> Vault:
        async with acquire(self._pool) as connection:
            organization = await organizations.by_id(connection, organization_id)
        if organization is None:
            raise LookupError("the organization is gone")
        return Vault.open(
            self._wrapping_key,
            organization_id,
            data_key_wrapped=organization.data_key_wrapped,
            digest_key_wrapped=organization.digest_key_wrapped,
            provider_key_secret_wrapped=organization.provider_key_secret_wrapped,
        )

    async def _read_tools(self, organization_id: UUID) -> Mapping[str, ToolContract]:
        async with acquire(self._pool) as connection:
            versions = await tool_contracts.all_of(connection, organization_id)
        newest = {tool: (version, document) for tool, version, document in versions}
        tools = {}
        for tool, (version, document) in newest.items():
            contract = self._contracts.kept((organization_id, tool, version))
            if contract is None:
                try:
                    contract = ToolContract.from_document(document)
                except (TypeError, ValueError):
                    # Of a newer version of this program, after a roll-back. Its tool is unknown here; all others go on. An older
                    # version does not stand in: it may name the same effect differently.
                    log.error("contract-unreadable", tool=tool, version=version)
                    continue
                self._contracts.put((organization_id, tool, version), contract)
            if contract.kind != "read":
                tools[tool] = contract
        return tools

    async def _read_contract(self, of: tuple[UUID, str, int]) -> ToolContract:
        async with acquire(self._pool) as connection:
            document = await tool_contracts.one(connection, *of)
        if document is None:
            raise LookupError(f"{of[1]} version {of[2]} is not installed")
        return ToolContract.from_document(document)

    async def _read_connection(self, of: _ConnectionName) -> ConnectionRow | None:
        async with acquire(self._pool) as connection:
            return await connections.resolve(connection, of.organization_id, of.environment_id, of.provider, of.name)

    async def _read_environment(self, of: tuple[UUID, str]) -> Environment:
        async with acquire(self._pool) as connection:
            environment = await organizations.environment(connection, *of)
        if environment is None:
            raise LookupError("the environment is gone")
        return environment

    async def _read_project(self, organization_id: UUID) -> UUID | None:
        async with acquire(self._pool) as connection:
            return await organizations.project(connection, organization_id, DEFAULT_PROJECT)

    async def _read_run(self, of: _RunName) -> Run | None:
        async with acquire(self._pool) as connection:
            return await runs.find(connection, of.organization_id, of.environment_id, of.project_id, of.name)


def _client_name(provider: str) -> str:
    """The name of the connection that stands for a provider without an account here."""
    if _CONNECTION_NAME.fullmatch(provider):
        return f"client-{provider}"
    return f"client-{hashlib.sha256(provider.encode()).hexdigest()[:32]}"


def _no_contract(expected: str) -> OutboxError:
    return OutboxError(
        "invalid-input",
        f"$.contract: expected {expected}.",
        message=messages.invalid_input("$.contract", expected),
        path="$.contract",
    )
