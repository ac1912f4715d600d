"""The caller's `Idempotency-Key`: the same request with the same key is answered with the same bytes, for 24 hours (design 5.7).

It names a request, not an effect: it never widens or replaces the operation key. Only final answers are kept, sealed; after any
other answer the same request is answered anew. Sources: draft-ietf-httpapi-idempotency-key-header-07, `interfaces.md` section 1.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from uuid import UUID

import msgspec
import structlog

from outbox_api.answers import Answer
from outbox_api.errors import is_final
from outbox_api.exchange import Exchange
from outbox_domain import messages
from outbox_domain.errors import OutboxError, Retry
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import NOT_NOW, Pool, acquire
from outbox_runtime.vault import StoredAnswer, Vault
from outbox_store import request_keys
from outbox_store.request_keys import Answered, Busy, RequestKey, Reused

log = structlog.stdlib.get_logger("outbox.api.request_keys")

HEADER = "idempotency-key"
CHARACTERS_MAX = 255
LEASE_SECONDS = 10.0
"""How long a request that is being answered holds its key unless it is renewed: as long as a killed process keeps it."""

RENEW_SECONDS = 3.0
FORGET_EVERY_SECONDS = 60.0
FORGET_AT_ONCE_MAX = 1_000

# A structured-field string (RFC 8941 section 3.3.3): printable ASCII, quote and backslash escaped.
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BARE = re.compile(r"[\x21\x23-\x7e]+")
_ESCAPED = re.compile(r"\\(.)")


def read_header(exchange: Exchange) -> str | None:
    """The request key of a request, quoted or bare; None where there is none.

    Raises:
        OutboxError: `invalid-request` where it is neither, is given twice, or has not 1 to 255 characters.
    """
    value = exchange.headers.get(HEADER)
    if value is None:
        return None
    value = value.strip()
    quoted = _QUOTED.fullmatch(value)
    name = _ESCAPED.sub(r"\1", quoted[1]) if quoted else value
    if HEADER in exchange.repeated or not (quoted or _BARE.fullmatch(value)) or not 1 <= len(name) <= CHARACTERS_MAX:
        expected = f"one key of 1 to {CHARACTERS_MAX} printable ASCII characters, quoted or bare"
        raise OutboxError(
            "invalid-request",
            f"Idempotency-Key: expected {expected}.",
            message=messages.invalid_input("Idempotency-Key", expected),
            path="Idempotency-Key",
        )
    return name


class RequestKeys:
    """The request keys that this process is answering."""

    def __init__(self, pool: Pool, new_id: Callable[[], UUID]) -> None:
        """Keeps keys by `pool`; `new_id` names each request in this process."""
        self._pool = pool
        self._new_id = new_id
        self._held: set[UUID] = set()

    async def answer_once(
        self,
        key: ScopedKey,
        vault: Vault,
        exchange: Exchange,
        body: bytes,
        name: str,
        handle: Callable[[], Awaitable[Answer]],
    ) -> Answer:
        """The answer that the request was given before, or a new one, kept if it is final.

        Args:
            key: whose request it is; request keys of different actors or environments never meet.
            vault: seals what is kept.
            exchange: the request.
            body: its body.
            name: its request key.
            handle: makes the answer; problems come back as answers.

        Raises:
            OutboxError: `request-key-reused`, `request-in-progress`.
            one of `AWAY`: Postgres is away; nothing was done.
        """
        of = RequestKey(
            organization_id=key.organization_id,
            environment_id=key.environment_id,
            actor_id=key.actor_id,
            method=exchange.method,
            path=exchange.path,
            key=name,
        )
        holder = self._new_id()
        digest = vault.digest(
            "request",
            exchange.query,
            body,
            exchange.headers.get("outbox-run", "").encode(),
            exchange.headers.get("outbox-checkpoint", "").encode(),
            _reach(key),
        )
        async with acquire(self._pool) as connection:
            taken = await request_keys.take(connection, of, digest, holder, lease_seconds=LEASE_SECONDS)
        match taken:
            case Answered():
                return _again(vault.open_answer(_name_of(of), taken.sealed_answer))
            case Reused():
                raise OutboxError(
                    "request-key-reused",
                    "This Idempotency-Key was used for another request. Use a new key, or repeat the earlier request unchanged.",
                    message=messages.invalid_input("Idempotency-Key", "a key that was not used for another request"),
                    path="Idempotency-Key",
                )
            case Busy():
                raise OutboxError(
                    "request-in-progress",
                    "The same request is being answered at this moment.",
                    message=messages.running(taken.after_seconds),
                    retry=Retry(action="wait", after_seconds=min(taken.after_seconds, 1.0)),
                )
        self._held.add(holder)
        kept = False
        try:
            answer = await handle()
            if is_final(answer.status, answer.code):
                kept = await self._keep(of, holder, vault, answer)
            return answer
        finally:
            self._held.discard(holder)
            if not kept:
                await asyncio.shield(self._release(of, holder))

    async def renew(self, stop: asyncio.Event) -> None:
        """Renew what is held and forget what is a day old, until `stop` is set."""
        since_forgotten = 0.0
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEW_SECONDS):
                    await stop.wait()
            since_forgotten += RENEW_SECONDS
            try:
                if self._held:
                    async with acquire(self._pool) as connection:
                        await request_keys.keep(connection, list(self._held), lease_seconds=LEASE_SECONDS)
                if since_forgotten >= FORGET_EVERY_SECONDS:
                    since_forgotten = 0.0
                    async with acquire(self._pool) as connection:
                        await request_keys.forget_expired(connection, limit=FORGET_AT_ONCE_MAX)
            except NOT_NOW as error:
                log.info("request-keys-not-renewed", error=type(error).__name__, held=len(self._held))

    async def _keep(self, of: RequestKey, holder: UUID, vault: Vault, answer: Answer) -> bool:
        stored = StoredAnswer(
            status=answer.status,
            headers=list(answer.headers),
            body=answer.body if answer.kept_body is None else answer.kept_body,
        )
        try:
            async with acquire(self._pool) as connection:
                await request_keys.answer(
                    connection, of, holder, status=answer.status, sealed_answer=vault.seal_answer(_name_of(of), stored)
                )
        except NOT_NOW as error:
            # The answer stands; the same request will be answered anew and joins by its operation key.
            log.info("answer-not-kept", error=type(error).__name__)
            return False
        return True

    async def _release(self, of: RequestKey, holder: UUID) -> None:
        try:
            async with acquire(self._pool) as connection:
                await request_keys.release(connection, of, holder)
        except NOT_NOW as error:
            # Its lease ends by itself.
            log.info("request-key-not-released", error=type(error).__name__)


def _reach(key: ScopedKey) -> bytes:
    """What the scoped key adds to the meaning of a request: the project and run it acts in, and how far it reaches.

    Two keys of one actor that differ here ask for different effects with the same bytes, so neither is told the other's answer;
    a key that was renewed with the same bounds is.
    """
    bounds = [None if patterns is None else sorted(patterns) for patterns in (key.providers, key.tools)]
    return msgspec.json.encode([key.acting_project, key.run, *bounds])


def _name_of(of: RequestKey) -> str:
    return f"{of.environment_id}:{of.actor_id}:{of.method}:{of.path}:{of.key}"


def _again(stored: StoredAnswer) -> Answer:
    headers = [(name, value) for name, value in stored.headers if name.lower() != "idempotent-replayed"]
    return Answer(
        status=stored.status,
        body=stored.body,
        code="request-replayed",
        headers=(*headers, ("Idempotent-Replayed", "true")),
    )
