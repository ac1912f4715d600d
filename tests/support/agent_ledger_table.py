"""The table of agent-ledger 0.2.1 in a database of a test's own, filled with what a program of theirs left behind."""

import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql
from tests.support.postgres import with_database

from agent_outbox.compat.agent_ledger import ToolCall, compute_idem_key
from agent_outbox.compat.agent_ledger.identity import canonicalize

TABLE = """
create table effects (
  id uuid primary key,
  idem_key text not null unique,
  workflow_id text not null,
  call_id text not null,
  tool text not null,
  status text not null,
  args_canonical text not null,
  resource_id_canonical text not null,
  result jsonb,
  error jsonb,
  dedup_count integer not null default 0,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  completed_at timestamptz
)
"""
INSERT = """
insert into effects (id, idem_key, workflow_id, call_id, tool, status, args_canonical, resource_id_canonical, result, error, created_at,
  updated_at, completed_at)
values (%s, %s, %s, 'call-1', %s, %s, %s, %s, %s, %s, now() - interval '1 day', now() - interval '1 day', %s::timestamptz)
"""
ENDED = "2026-01-31T08:15:00+00:00"


class AgentLedgerTable:
    """Their database.

    Attributes:
        dsn: of it.
    """

    def __init__(self, server_url: str) -> None:
        """Makes a database with the table.

        Args:
            server_url: of a superuser.
        """
        name = f"agent_ledger_{uuid4().hex[:12]}"
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        self.dsn = with_database(server_url, name)
        self._execute(TABLE)

    def add(self, call: ToolCall, status: str, *, result: Any = None, error: dict[str, str | None] | None = None) -> str:
        """Record an effect of a call; returns its id."""
        id = str(uuid4())
        ended = ENDED if status in ("succeeded", "failed", "denied", "canceled") else None
        documents = [None if value is None else json.dumps(value) for value in (result, error)]
        values = [
            id,
            compute_idem_key(call),
            call.workflow_id,
            call.tool,
            status,
            canonicalize(call.args),
            call.tool,
            *documents,
            ended,
        ]
        self._execute(INSERT, values)
        return id

    def change(self, id: str, status: str, result: Any) -> None:
        """What became of an effect afterwards."""
        self._execute("update effects set status = %s, result = %s where id = %s", [status, json.dumps(result), id])

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(statement.encode(), values)
