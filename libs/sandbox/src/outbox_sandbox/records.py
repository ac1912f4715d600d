"""What the provider remembers, and all SQL: effects, stored idempotency answers, and every request that was received.

One connection, used by one event loop: statements are short, so the process needs no threads and every read sees every
commit. Refunds, customers, tickets and Stripe's events are not tables of their own: they are read from the effects.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from outbox_sandbox.exchange import Answer, Effect, Fields

SCHEMA = """
create table if not exists effects (
    seq integer primary key autoincrement,
    id text not null unique,
    resource text not null,
    path text not null,
    subject text,
    amount integer,
    created real not null,
    idempotency_key text,
    marker text,
    request_id text not null,
    traceparent text,
    fields text not null,
    result text not null
);
create index if not exists effects_by_resource on effects (resource, seq);
create index if not exists effects_by_subject on effects (resource, subject, seq, amount);
create table if not exists stored_answers (
    service text not null,
    idempotency_key text not null,
    fingerprint text not null,
    request_id text not null,
    status integer not null,
    headers text not null,
    body blob not null,
    created real not null,
    primary key (service, idempotency_key)
);
create table if not exists requests (
    seq integer primary key autoincrement,
    request_id text not null unique,
    method text not null,
    path text not null,
    query text not null,
    idempotency_key text,
    marker text,
    traceparent text,
    received real not null,
    complete integer not null,
    committed integer not null default 0,
    replayed integer not null default 0,
    status integer,
    fault text
);
create index if not exists requests_by_key on requests (idempotency_key);
create index if not exists requests_by_marker on requests (marker);
"""

OPEN_REQUEST = """
insert into requests (request_id, method, path, query, idempotency_key, marker, traceparent, received, complete)
values (:request_id, :method, :path, :query, :idempotency_key, :marker, :traceparent, :received, :complete)
"""

CLOSE_REQUEST = "update requests set status = :status, fault = :fault, replayed = :replayed where request_id = :request_id"

COMMIT_EFFECT = """
insert into effects
    (id, resource, path, subject, amount, created, idempotency_key, marker, request_id, traceparent, fields, result)
select :id, :resource, path, :subject, :amount, :created, idempotency_key, marker, request_id, traceparent, :fields, :result
from requests where request_id = :request_id
"""

MARK_COMMITTED = "update requests set committed = 1 where request_id = :request_id"

STORE_ANSWER = """
insert into stored_answers (service, idempotency_key, fingerprint, request_id, status, headers, body, created)
values (:service, :idempotency_key, :fingerprint, :request_id, :status, :headers, :body, :created)
"""

READ_STORED = "select * from stored_answers where service = :service and idempotency_key = :idempotency_key"

FORGET_ONE = "delete from stored_answers where service = :service and idempotency_key = :idempotency_key"

FORGET_ALL = "delete from stored_answers"

MOVED = "select coalesce(sum(amount), 0) from effects where resource = :resource and subject = :subject"

READ_EFFECT = "select * from effects where id = :id"

# A page is taken from whichever end the cursor says and turned newest first by the caller.
PAGE_ALL = """
select * from effects
where resource in (select value from json_each(:resources))
  and seq < :before and created >= :created_from and created < :created_until
order by seq desc limit :limit
"""

PAGE_OF_SUBJECT = """
select * from effects
where resource in (select value from json_each(:resources)) and subject = :subject
  and seq < :before and created >= :created_from and created < :created_until
order by seq desc limit :limit
"""

PAGE_ALL_BACKWARDS = """
select * from effects
where resource in (select value from json_each(:resources))
  and seq > :after and created >= :created_from and created < :created_until
order by seq limit :limit
"""

PAGE_OF_SUBJECT_BACKWARDS = """
select * from effects
where resource in (select value from json_each(:resources)) and subject = :subject
  and seq > :after and created >= :created_from and created < :created_until
order by seq limit :limit
"""

LIST_EFFECTS = "select * from effects where (:path is null or path = :path) order by seq"

LIST_REQUESTS = """
select * from requests
where (:path is null or path = :path)
  and (:method is null or method = :method)
  and (:idempotency_key is null or idempotency_key = :idempotency_key)
  and (:marker is null or marker = :marker)
order by seq
"""

EVERYTHING = ("delete from effects", FORGET_ALL, "delete from requests")

SEQ_MAX = 2**62


@dataclass(frozen=True, kw_only=True)
class StoredAnswer:
    """The first answer to an idempotency key."""

    fingerprint: str
    """Identity of the request that was first sent under the key."""
    request_id: str
    created: float
    answer: Answer

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """A row of `stored_answers`."""
        headers = tuple((name, value) for name, value in json.loads(row["headers"]))
        answer = Answer(status=row["status"], headers=headers, body=row["body"])
        return cls(fingerprint=row["fingerprint"], request_id=row["request_id"], created=row["created"], answer=answer)


@dataclass(frozen=True, kw_only=True)
class CommittedEffect:
    """An effect that happened, with the request that caused it."""

    seq: int
    effect: Effect
    path: str
    created: float
    """Seconds since the epoch, at commit."""
    idempotency_key: str | None
    marker: str | None
    request_id: str
    traceparent: str | None

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """A row of `effects`."""
        effect = Effect(
            id=row["id"],
            resource=row["resource"],
            subject=row["subject"],
            amount=row["amount"],
            fields=json.loads(row["fields"]),
            result=json.loads(row["result"]),
        )
        return cls(
            seq=row["seq"],
            effect=effect,
            path=row["path"],
            created=row["created"],
            idempotency_key=row["idempotency_key"],
            marker=row["marker"],
            request_id=row["request_id"],
            traceparent=row["traceparent"],
        )

    def document(self) -> Fields:
        """The effect as it is listed.

        The request's fields stand both under `fields`, exactly as received, and beside the members of our own (which win
        where a name is used by both), so that a reader may say `effect["amount"]`.
        """
        own: Fields = {
            "id": self.effect.id,
            "resource": self.effect.resource,
            "path": self.path,
            "created": self.created,
            "idempotency_key": self.idempotency_key,
            "marker": self.marker,
            "request_id": self.request_id,
            "traceparent": self.traceparent,
            "fields": self.effect.fields,
            "result": self.effect.result,
        }
        return {**self.effect.fields, **own}


@dataclass(frozen=True, kw_only=True)
class Page:
    """Which effects a list asks for. Times are seconds since the epoch."""

    resources: Sequence[str]
    subject: str | None = None
    limit: int
    older_than: int | None = None
    """Only effects with a smaller sequence number."""
    newer_than: int | None = None
    """Only effects with a greater sequence number, nearest first."""
    created_from: float = 0.0
    """Inclusive."""
    created_until: float = float("inf")
    """Exclusive."""


class Records:
    """The provider's memory in one SQLite file, or in the process's memory."""

    def __init__(self, file: str = ":memory:") -> None:
        """Open or create `file`. Raises `sqlite3.Error` where it cannot be opened or is not a database."""
        self._connection = sqlite3.connect(file, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        # A commit must survive the death of this process, not of the machine: the write-ahead log without fsync gives
        # just that and keeps the provider's own time out of the latencies measured against it.
        self._connection.execute("pragma journal_mode = wal")
        self._connection.execute("pragma synchronous = off")
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; no `await` may stand inside, for the connection is shared."""
        self._connection.execute("begin immediate")
        try:
            yield
            self._connection.execute("commit")
        except BaseException:
            # A commit that fails (a full disk) leaves the transaction open; some errors have ended it already.
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            raise

    def open_request(
        self,
        *,
        request_id: str,
        method: str,
        path: str,
        query: str,
        idempotency_key: str | None,
        marker: str | None,
        traceparent: str | None,
        received: float,
        complete: bool,
    ) -> None:
        """Note that a request was received, before anything is done about it. `complete`: its whole body arrived."""
        self._connection.execute(
            OPEN_REQUEST,
            {
                "request_id": request_id,
                "method": method,
                "path": path,
                "query": query,
                "idempotency_key": idempotency_key,
                "marker": marker,
                "traceparent": traceparent,
                "received": received,
                "complete": complete,
            },
        )

    def close_request(self, *, request_id: str, status: int | None, fault: str | None, replayed: bool) -> None:
        """Note what became of a request. `status` is None where no answer is sent."""
        self._connection.execute(
            CLOSE_REQUEST, {"request_id": request_id, "status": status, "fault": fault, "replayed": replayed}
        )

    def commit_effect(self, effect: Effect, *, request_id: str, created: float) -> None:
        """Make an effect of the request that was opened as `request_id`."""
        self._connection.execute(
            COMMIT_EFFECT,
            {
                "id": effect.id,
                "resource": effect.resource,
                "subject": effect.subject,
                "amount": effect.amount,
                "created": created,
                "fields": json.dumps(effect.fields),
                "result": json.dumps(effect.result),
                "request_id": request_id,
            },
        )
        self._connection.execute(MARK_COMMITTED, {"request_id": request_id})

    def store_answer(self, *, service: str, idempotency_key: str, stored: StoredAnswer) -> None:
        """Keep the first answer to a key."""
        self._connection.execute(
            STORE_ANSWER,
            {
                "service": service,
                "idempotency_key": idempotency_key,
                "fingerprint": stored.fingerprint,
                "request_id": stored.request_id,
                "status": stored.answer.status,
                "headers": json.dumps(stored.answer.headers),
                "body": stored.answer.body,
                "created": stored.created,
            },
        )

    def stored_answer(self, *, service: str, idempotency_key: str, created_from: float) -> StoredAnswer | None:
        """The stored answer to a key; one made before `created_from` is forgotten on the way."""
        key = {"service": service, "idempotency_key": idempotency_key}
        row = self._connection.execute(READ_STORED, key).fetchone()
        if row is None:
            return None
        stored = StoredAnswer.from_row(row)
        if stored.created >= created_from:
            return stored
        self._connection.execute(FORGET_ONE, key)
        return None

    def forget_answers(self) -> int:
        """Forget every stored answer; returns how many there were."""
        return self._connection.execute(FORGET_ALL).rowcount

    def moved(self, *, resource: str, subject: str) -> int:
        """The sum of money that moved for a subject, in minor units."""
        row = self._connection.execute(MOVED, {"resource": resource, "subject": subject}).fetchone()
        return int(row[0])

    def effect(self, effect_id: str) -> CommittedEffect | None:
        """One effect by its id."""
        row = self._connection.execute(READ_EFFECT, {"id": effect_id}).fetchone()
        return None if row is None else CommittedEffect.from_row(row)

    def page(self, page: Page) -> tuple[list[CommittedEffect], bool]:
        """The effects a list asks for, newest first, and whether there are more in the direction it reads."""
        binds = {
            "resources": json.dumps(list(page.resources)),
            "subject": page.subject,
            "before": SEQ_MAX if page.older_than is None else page.older_than,
            "after": page.newer_than,
            "created_from": page.created_from,
            "created_until": page.created_until,
            "limit": page.limit + 1,
        }
        if page.newer_than is None:
            statement = PAGE_ALL if page.subject is None else PAGE_OF_SUBJECT
        else:
            statement = PAGE_ALL_BACKWARDS if page.subject is None else PAGE_OF_SUBJECT_BACKWARDS
        rows = [CommittedEffect.from_row(row) for row in self._connection.execute(statement, binds)]
        taken = rows[: page.limit]
        return (taken if page.newer_than is None else taken[::-1]), len(rows) > page.limit

    def effects(self, path: str | None) -> list[CommittedEffect]:
        """All effects, or those of requests to exactly `path`, oldest first."""
        return [CommittedEffect.from_row(row) for row in self._connection.execute(LIST_EFFECTS, {"path": path})]

    def requests(
        self, *, path: str | None, method: str | None, idempotency_key: str | None, marker: str | None
    ) -> list[dict[str, object]]:
        """The received requests that match every given filter, oldest first."""
        binds = {"path": path, "method": method, "idempotency_key": idempotency_key, "marker": marker}
        rows = (dict(row) for row in self._connection.execute(LIST_REQUESTS, binds))
        return [{**row, **{name: bool(row[name]) for name in ("complete", "committed", "replayed")}} for row in rows]

    def forget_everything(self) -> None:
        """Back to the day before the first request."""
        with self.transaction():
            for statement in EVERYTHING:
                self._connection.execute(statement)
