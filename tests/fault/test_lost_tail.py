"""The ledger's tail is lost: restored backups, a promoted standby, deleted rows. Effects are counted at the provider.

Every story has effects of each class whose reservations were open when the backup was taken, and others that were made after it. What
remembers them differs: the surviving worker's memory, a state file, Redis, or only the timeline of Postgres.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from tests.support.invariants import assert_invariants
from tests.support.lost_tail import base_backup, pair, restore
from tests.support.postgres import StoppablePostgres
from tests.support.processes import wait_until
from tests.support.recovery_ground import Ground, Servers, make_ground, serving
from tests.support.redis import StoppableRedis

from outbox_domain.epoch import Mark
from outbox_store.reserve import NewReservation
from outbox_store.resolve import Resolution, Resolved, resolve

REFUND, TICKET, MAIL = "stripe.refund.create", "sandbox.ticket.create", "sendgrid.mail.send"
TOOLS = (REFUND, TICKET, MAIL)
SOON_SECONDS = 60.0
CHECK = {"OUTBOX_EPOCH_CHECK_SECONDS": "0.3"}


def token_of(row: NewReservation) -> str:
    """What stands in the input of a row and nowhere else."""
    return row.operation_key.rpartition(":")[2]


def redis_has_seen(url: str, beat: int) -> None:
    """Wait until Redis remembers a beat: then it knows of everything that was committed before."""
    client = Redis.from_url(url)

    def seen() -> bool:
        text = client.get("outbox:mark")
        mark = Mark.from_text(text) if isinstance(text, bytes) else None
        return mark is not None and mark.beat >= beat

    wait_until(seen, deadline_seconds=SOON_SECONDS, what="a newer mark in Redis")


@dataclass(kw_only=True)
class Story:
    """One ledger, before and after it has lost its tail.

    Attributes:
        ground: the organization.
        open: reservations that were open when the backup was taken, by tool.
        sent: the same for those whose requests had reached the provider, which had not answered.
        lost: effects made after the backup, by tool.
    """

    ground: Ground
    open: dict[str, NewReservation] = field(default_factory=dict)
    sent: dict[str, NewReservation] = field(default_factory=dict)
    lost: dict[str, NewReservation] = field(default_factory=dict)
    doubted: list[NewReservation] = field(default_factory=list)

    async def effects(self, row: NewReservation) -> int:
        """How many effects the provider has made of a key."""
        return len(await self.ground.effects(row))

    async def epochs(self) -> list[dict[str, Any]]:
        """All epochs, the newest last."""
        return await self.ground.scene.fetch("select * from epochs order by number")

    async def beat(self) -> int:
        """How often a worker has looked at the ledger."""
        return int((await self.ground.scene.fetch("select beat from installation"))[0]["beat"])

    async def until_epoch(self, number: int) -> dict[str, Any]:
        """Wait until a worker has declared an epoch."""

        def log() -> str:
            return self.ground.servers.log()[-4000:]

        async with asyncio.timeout(SOON_SECONDS):
            while True:
                with contextlib.suppress(OSError):
                    newest = (await self.epochs())[-1]
                    if newest["number"] >= number:
                        assert newest["number"] == number, log()
                        return newest
                await asyncio.sleep(0.05)

    async def before(self) -> None:
        """What is open when the backup is taken: the worker is stopped at the end of it."""
        [worker] = self.ground.servers.workers
        done = await self.ground.reserve(REFUND)
        await self.ground.until_state(done, "succeeded")
        self.doubted = [await self.ground.faulty(MAIL, "commit-then-drop")]
        await self.ground.until_a_person(self.doubted[0])
        for tool in TOOLS:
            self.sent[tool] = await self.ground.faulty(tool, "hang", delay_seconds=30.0)
            await asyncio.to_thread(
                wait_until,
                lambda row=self.sent[tool]: len(asyncio.run(self.ground.effects(row))) == 1,
                deadline_seconds=10,
                what=f"the request of {tool}",
            )
        worker.send(signal.SIGSTOP)
        for tool in TOOLS:
            self.open[tool] = await self.ground.reserve(tool)
        assert {(await self.ground.read(row))["state"] for row in self.sent.values()} <= {"executing", "in_doubt", "succeeded"}

    async def after_the_backup(self) -> None:
        """The worker goes on, and effects are made that the backup knows nothing of."""
        [worker] = self.ground.servers.workers
        worker.send(signal.SIGCONT)
        for tool in TOOLS:
            self.lost[tool] = await self.ground.reserve(tool)
            await self.ground.until_state(self.lost[tool], "succeeded")
        for row in self.open.values():
            await self.ground.until_state(row, "succeeded")
        for tool in (REFUND, TICKET):
            await self.ground.until_state(self.sent[tool], "succeeded")
        await self.ground.until_a_person(self.sent[MAIL])
        for row in (*self.lost.values(), *self.open.values(), *self.sent.values(), *self.doubted):
            assert await self.effects(row) == 1

    async def recovered(self) -> None:
        """What was open ends with the effect that it had; mails wait for a person."""
        for row in (*(self.open[tool] for tool in (REFUND, TICKET)), *(self.sent[tool] for tool in (REFUND, TICKET))):
            await self.ground.until_state(row, "succeeded", deadline_seconds=SOON_SECONDS)
        for row in (self.open[MAIL], self.sent[MAIL], *self.doubted):
            await self.ground.until_a_person(row, deadline_seconds=SOON_SECONDS)
        await self.one_effect_each(*self.open.values(), *self.sent.values(), *self.doubted)

    async def repeated(self) -> None:
        """The agents repeat what the ledger has forgotten: replayed, found, or held for a person who finds it."""
        again = {tool: await self.ground.reserve(tool, token=token_of(row)) for tool, row in self.lost.items()}
        refunded = await self.ground.until_state(again[REFUND], "succeeded", deadline_seconds=SOON_SECONDS)
        assert refunded["outcomes"] == ["unknown", "succeeded"]
        found = await self.ground.until_state(again[TICKET], "succeeded", deadline_seconds=SOON_SECONDS)
        assert (found["outcomes"], found["confidence"]) == (["unknown"], "confirmed-by-lookup")
        held = await self.ground.until_a_person(again[MAIL], deadline_seconds=SOON_SECONDS)
        assert held["doubt_cause"] == "epoch"
        assert (await self.says(again[MAIL], "msg_1")).state == "succeeded"
        await self.one_effect_each(*again.values())

    async def new(self) -> None:
        """Keys that never were: sent, sent after two absences, and sent once a person has said that it did not happen."""
        fresh = {tool: await self.ground.reserve(tool) for tool in TOOLS}
        await self.ground.until_state(fresh[REFUND], "succeeded", deadline_seconds=SOON_SECONDS)
        found = await self.ground.until_state(fresh[TICKET], "succeeded", deadline_seconds=SOON_SECONDS)
        assert (found["outcomes"], found["absent"]) == (["unknown", "succeeded"], [True, False])
        await self.ground.until_a_person(fresh[MAIL], deadline_seconds=SOON_SECONDS)
        assert await self.effects(fresh[MAIL]) == 0
        assert (await self.says(fresh[MAIL], None)).verdict == "too-early"
        await self.ground.change("update reservations set absence_counts_at = now() where id = $1", fresh[MAIL].id)
        answered = await self.says(fresh[MAIL], None)
        assert (answered.verdict, answered.state) == ("settled", "reserved")
        await self.ground.until_state(fresh[MAIL], "succeeded")
        await self.one_effect_each(*fresh.values())

    async def says(self, row: NewReservation, reference: str | None) -> Resolved:
        """A person says that it happened, under this name, or that it did not."""
        [standing] = await self.ground.scene.fetch("select last_attempt_id from reservations where id = $1", row.id)
        said = Resolution(
            organization_id=row.organization_id,
            reservation_id=row.id,
            attempt_id=None if reference else standing["last_attempt_id"],
            happened=reference is not None,
            by="person",
            asked_at=None,
            absences_needed=1,
            then="fail",
            again_seconds=0.0,
            receipt_id=uuid4(),
            provider="sendgrid",
            external_reference=reference,
            provider_request_id=None,
            evidence=[{"kind": "person", "detail": {"by": "member:tests"}}],
            sealed_result=None,
            said_by=["member:tests"],
            reason="looked",
        )
        async with self.ground.scene.connection(self.ground.scene.database.api_url) as connection:
            [result] = await resolve(connection, [said], tries_max=20)
        assert isinstance(result, Resolved), result
        return result

    async def one_effect_each(self, *rows: NewReservation) -> None:
        """The provider has made exactly one effect of each of these keys."""
        for row in rows:
            assert await self.effects(row) == 1, (row.tool, await self.ground.read(row), self.ground.servers.log()[-4000:])

    async def all(self) -> None:
        """Everything that must hold after a loss."""
        await self.recovered()
        await self.repeated()
        await self.new()
        await assert_invariants(self.ground.scene.database.superuser_url)


@contextlib.asynccontextmanager
async def telling(postgres: StoppablePostgres, folder: Path, **worker: str) -> AsyncIterator[Story]:
    """A story on a server of its own; the worker has these settings."""
    with serving(postgres.server.migrated_database(), folder, **CHECK, **worker) as servers:
        await asyncio.to_thread(until_it_knows_the_ledger, servers)
        yield Story(ground=await make_ground(servers))


def until_it_knows_the_ledger(servers: Servers) -> None:
    """Wait until the worker has compared the ledger with its marks: one that is stopped before has nothing to remember."""
    [worker] = servers.workers
    worker.wait_for(lambda: "ledger-known" in worker.log(), deadline_seconds=SOON_SECONDS)


def stopped(servers: Servers) -> None:
    """Kill every worker, so that what they had in memory is gone."""
    for worker in servers.workers:
        worker.kill()
    servers.workers.clear()


async def test_restored_under_a_surviving_worker(stoppable_postgres: StoppablePostgres, tmp_path: Path) -> None:
    """A base backup is restored, on the same timeline: the worker misses an attempt that it made, and no effect is made twice."""
    async with telling(stoppable_postgres, tmp_path) as story:
        await story.before()
        await asyncio.to_thread(base_backup, stoppable_postgres.embedded, tmp_path / "backup")
        await story.after_the_backup()
        await asyncio.to_thread(stoppable_postgres.stop)
        await asyncio.to_thread(restore, stoppable_postgres, tmp_path / "backup", new_timeline=False)
        epoch = await story.until_epoch(2)
        assert epoch["cause"] in ("a mark is ahead of the ledger", "an attempt is missing from the ledger")
        assert epoch["timeline"] == 1
        await story.all()


@pytest.mark.parametrize("remembered_by", ["state file", "redis"])
async def test_restored_under_new_workers(
    stoppable_postgres: StoppablePostgres, request: pytest.FixtureRequest, tmp_path: Path, remembered_by: str
) -> None:
    """Every worker was killed before the base backup is restored: a state file, or Redis, is ahead of it; no effect is made twice."""
    settings = {"OUTBOX_STATE_FOLDER": str(tmp_path / "state")}
    if remembered_by == "redis":
        redis: StoppableRedis = request.getfixturevalue("stoppable_redis")
        settings = {"OUTBOX_REDIS_URL": redis.embedded.url}
    async with telling(stoppable_postgres, tmp_path, **settings) as story:
        await story.before()
        await asyncio.to_thread(base_backup, stoppable_postgres.embedded, tmp_path / "backup")
        await story.after_the_backup()
        if remembered_by == "redis":
            await asyncio.to_thread(redis_has_seen, redis.embedded.url, await story.beat() + 1)
        stopped(story.ground.servers)
        await asyncio.to_thread(stoppable_postgres.stop)
        await asyncio.to_thread(restore, stoppable_postgres, tmp_path / "backup", new_timeline=False)
        story.ground.servers.start_worker(**CHECK, **settings)
        epoch = await story.until_epoch(2)
        assert (epoch["cause"], epoch["timeline"]) == ("a mark is ahead of the ledger", 1)
        await story.all()


async def test_recovered_to_a_point_in_time(stoppable_postgres: StoppablePostgres, tmp_path: Path) -> None:
    """The backup is recovered as to a point in time: the new timeline alone shows it to workers that remember nothing."""
    async with telling(stoppable_postgres, tmp_path) as story:
        await story.before()
        await asyncio.to_thread(base_backup, stoppable_postgres.embedded, tmp_path / "backup")
        await story.after_the_backup()
        stopped(story.ground.servers)
        await asyncio.to_thread(stoppable_postgres.stop)
        await asyncio.to_thread(restore, stoppable_postgres, tmp_path / "backup", new_timeline=True)
        story.ground.servers.start_worker(**CHECK)
        epoch = await story.until_epoch(2)
        assert (epoch["cause"], epoch["timeline"]) == ("another timeline", 2)
        await story.all()


async def test_promoted_standby(stoppable_postgres: StoppablePostgres, tmp_path: Path) -> None:
    """An asynchronous standby is promoted without the primary's last commits: the worker goes over to it, and no effect is made twice."""
    postgres = stoppable_postgres
    database = postgres.server.migrated_database()
    with pair(postgres, postgres.embedded.binaries, tmp_path) as both:
        with serving(both.both(database), tmp_path, **CHECK) as servers:
            await asyncio.to_thread(until_it_knows_the_ledger, servers)
            story = Story(ground=await make_ground(servers))
            await story.before()
            await both.until_equal()
            await both.cut()
            await story.after_the_backup()
            await asyncio.to_thread(postgres.stop_immediately)
            await both.promote()
            epoch = await story.until_epoch(2)
            assert epoch["timeline"] == 2
            await story.all()


async def test_a_loss_that_nobody_remembers(stoppable_postgres: StoppablePostgres, tmp_path: Path) -> None:
    """Negative control: without any mark and on the old timeline the loss is not noticed, and the mail is sent twice."""
    async with telling(stoppable_postgres, tmp_path) as story:
        await asyncio.to_thread(base_backup, stoppable_postgres.embedded, tmp_path / "backup")
        mail = await story.ground.reserve(MAIL)
        await story.ground.until_state(mail, "succeeded")
        stopped(story.ground.servers)
        await asyncio.to_thread(stoppable_postgres.stop)
        await asyncio.to_thread(restore, stoppable_postgres, tmp_path / "backup", new_timeline=False)
        story.ground.servers.start_worker(**CHECK)
        again = await story.ground.reserve(MAIL, token=token_of(mail))
        await story.ground.until_state(again, "succeeded")
        assert await story.effects(mail) == 2
        assert [epoch["number"] for epoch in await story.epochs()] == [1]


async def lose_rows(story: Story, *rows: NewReservation) -> None:
    """Delete everything the ledger knows of these reservations, as if their commits were gone."""
    ids = [row.id for row in rows]
    await story.ground.change("delete from ledger_entries where reservation_id = any($1)", ids)
    await story.ground.change("delete from reservations where id = any($1)", ids)


async def test_deleted_tail(stoppable_postgres: StoppablePostgres, tmp_path: Path) -> None:
    """The newest rows are gone from a Postgres that never stopped: the worker misses its newest attempt at its next look."""
    async with telling(stoppable_postgres, tmp_path) as story:
        for tool in TOOLS:
            story.lost[tool] = await story.ground.reserve(tool)
            await story.ground.until_state(story.lost[tool], "succeeded")
        await lose_rows(story, *story.lost.values())
        epoch = await story.until_epoch(2)
        assert epoch["cause"] == "an attempt is missing from the ledger"
        await story.repeated()
        await story.new()
        await assert_invariants(story.ground.scene.database.superuser_url)


async def test_without_the_rule_of_first_seen_keys(stoppable_postgres: StoppablePostgres, tmp_path: Path) -> None:
    """Negative control: where somebody has cleared an epoch in which something was lost, the repeated mail is sent twice."""
    async with telling(stoppable_postgres, tmp_path) as story:
        mail = await story.ground.reserve(MAIL)
        await story.ground.until_state(mail, "succeeded")
        await lose_rows(story, mail)
        await story.until_epoch(2)
        await story.ground.change(
            "insert into epoch_clearances (organization_id, environment_id, epoch, cleared_by, reason) values ($1, $2, 2, '[]', 'Wrongly.')",
            story.ground.scene.organization_id,
            story.ground.scene.environment_id,
        )
        again = await story.ground.reserve(MAIL, token=token_of(mail))
        await story.ground.until_state(again, "succeeded")
        assert await story.effects(mail) == 2


async def test_without_the_epoch_on_rows(stoppable_postgres: StoppablePostgres, tmp_path: Path) -> None:
    """Negative control: a row that is reserved in the backup and says that it is of the new epoch already is sent a second time."""
    async with telling(stoppable_postgres, tmp_path) as story:
        [worker] = story.ground.servers.workers
        worker.send(signal.SIGSTOP)
        mail = await story.ground.reserve(MAIL)
        await asyncio.to_thread(base_backup, stoppable_postgres.embedded, tmp_path / "backup")
        worker.send(signal.SIGCONT)
        await story.ground.until_state(mail, "succeeded")
        stopped(story.ground.servers)
        await asyncio.to_thread(stoppable_postgres.stop)
        await asyncio.to_thread(restore, stoppable_postgres, tmp_path / "backup", new_timeline=True)
        await story.ground.change("alter table reservations drop constraint reservations_epoch_fkey")
        await story.ground.change("update reservations set epoch = 2, suspected_epoch = 2 where id = $1", mail.id)
        story.ground.servers.start_worker(**CHECK)
        await story.until_epoch(2)
        await story.ground.until_state(mail, "succeeded")
        assert await story.effects(mail) == 2


async def test_no_false_alarm(stoppable_postgres: StoppablePostgres, stoppable_redis: StoppableRedis, tmp_path: Path) -> None:
    """A restart, a crash, a flushed and a killed Redis, a lost and a half-written state file are no loss: the epoch stays."""
    state, redis_url = tmp_path / "state", stoppable_redis.embedded.url
    settings = {"OUTBOX_STATE_FOLDER": str(state), "OUTBOX_REDIS_URL": redis_url}
    async with telling(stoppable_postgres, tmp_path, **settings) as story:

        async def goes_on() -> None:
            for tool in TOOLS:
                row = await story.ground.reserve(tool)
                await story.ground.until_state(row, "succeeded")
                assert await story.effects(row) == 1

        await goes_on()
        await asyncio.to_thread(stoppable_postgres.stop)
        await asyncio.to_thread(stoppable_postgres.start)
        await goes_on()
        await asyncio.to_thread(stoppable_postgres.stop_immediately)
        await asyncio.to_thread(stoppable_postgres.start)
        await goes_on()
        await asyncio.to_thread(Redis.from_url(redis_url).flushall)
        await goes_on()
        stopped(story.ground.servers)
        for path in state.iterdir():
            path.unlink()
        story.ground.servers.start_worker(**CHECK, **settings)
        await goes_on()
        stopped(story.ground.servers)
        [mark] = state.iterdir()
        mark.write_text(mark.read_text()[:40])
        await asyncio.to_thread(stoppable_redis.kill)
        story.ground.servers.start_worker(**CHECK, **settings)
        await goes_on()
        assert [epoch["number"] for epoch in await story.epochs()] == [1]
        await assert_invariants(story.ground.scene.database.superuser_url)


async def test_another_server(stoppable_postgres: StoppablePostgres, tmp_path: Path) -> None:
    """A ledger whose epoch began on a server of another system identifier (a dump restored elsewhere) has lost its tail."""
    async with telling(stoppable_postgres, tmp_path) as story:
        done = await story.ground.reserve(REFUND)
        await story.ground.until_state(done, "succeeded")
        await story.ground.change("update epochs set system_identifier = system_identifier + 1")
        epoch = await story.until_epoch(2)
        assert epoch["cause"] == "another system identifier"
        await story.new()
