"""Who may do what besides calling tools: roles map to capabilities in one table (design section 11).

Members have roles. An agent or subagent has none: it calls the tools its key reaches and reads what it caused itself.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

from outbox_domain.errors import OutboxError

ActorKind = Literal["member", "agent", "subagent"]


class Role(StrEnum):
    """What a member is in an organization."""

    OWNER = "owner"
    ADMIN = "admin"
    OPERATOR = "operator"
    APPROVER = "approver"
    AUDITOR = "auditor"
    DEVELOPER = "developer"


class Capability(StrEnum):
    """What an actor may do."""

    CALL_TOOLS = "call-tools"
    EXECUTE_EFFECTS = "execute-effects"
    READ_OWN = "read-own"
    READ_ALL = "read-all"
    READ_LEDGER = "read-ledger"
    RESOLVE = "resolve"
    VOTE_ON_REVIEWS = "vote-on-reviews"
    RESOLVE_DOUBTS = "resolve-doubts"
    CLEAR_EPOCHS = "clear-epochs"
    SET_SWITCHES = "set-switches"
    MANAGE_KEYS = "manage-keys"
    MANAGE_CONNECTIONS = "manage-connections"
    MANAGE_CONTRACTS = "manage-contracts"
    MANAGE_POLICIES = "manage-policies"
    MANAGE_MEMBERS = "manage-members"
    MANAGE_ORGANIZATION = "manage-organization"


_READER = frozenset({Capability.READ_OWN, Capability.READ_ALL})

CAPABILITIES: Mapping[Role, frozenset[Capability]] = MappingProxyType(
    {
        Role.OWNER: frozenset(Capability),
        Role.ADMIN: frozenset(Capability) - {Capability.MANAGE_ORGANIZATION},
        Role.OPERATOR: _READER
        | {
            Capability.READ_LEDGER,
            Capability.RESOLVE,
            Capability.RESOLVE_DOUBTS,
            Capability.CLEAR_EPOCHS,
            Capability.SET_SWITCHES,
        },
        Role.APPROVER: _READER | {Capability.VOTE_ON_REVIEWS},
        Role.AUDITOR: _READER | {Capability.READ_LEDGER},
        Role.DEVELOPER: _READER
        | {Capability.CALL_TOOLS, Capability.EXECUTE_EFFECTS, Capability.RESOLVE, Capability.MANAGE_CONTRACTS},
    }
)
"""What each role may do. A member with several roles may do what any of them may."""

AGENT_CAPABILITIES = frozenset({Capability.CALL_TOOLS, Capability.EXECUTE_EFFECTS, Capability.READ_OWN})
"""What an agent or subagent may do, whatever roles someone wrote beside its name."""


def capabilities(actor_kind: ActorKind, roles: Iterable[str]) -> frozenset[Capability]:
    """What an actor may do.

    Args:
        actor_kind: only members have roles.
        roles: names of `Role`; a name that is no role gives nothing.

    Returns:
        The union over the roles.
    """
    if actor_kind != "member":
        return AGENT_CAPABILITIES
    known = (Role(role) for role in roles if role in Role.__members__.values())
    return frozenset[Capability]().union(*(CAPABILITIES[role] for role in known))


def require(actor_kind: ActorKind, roles: Iterable[str], capability: Capability) -> None:
    """Refuses an actor who lacks a capability.

    Raises:
        OutboxError: `out-of-scope`, with the capability's name.
    """
    if capability not in capabilities(actor_kind, roles):
        raise OutboxError("out-of-scope", f"This key does not have the capability {capability}.", capability=str(capability))
