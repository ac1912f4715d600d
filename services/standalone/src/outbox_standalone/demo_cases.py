"""The cases of the demo, and how one column of them is played."""

import asyncio
from collections.abc import Mapping
from typing import Any

from outbox_standalone.demo_column import Column
from outbox_standalone.demo_verdict import Case

REFUNDS = "/v1/refunds"
MAILS = "/v3/mail/send"
HELD_SECONDS = 60.0
SLOW_SECONDS = 0.5
OTHER_AMOUNT = 1300

REPLY_LOST = Case(name="reply-lost", fault="reply lost after commit", amount=1200, expected=("succeeded",))
KILLED = Case(name="killed", fault="killed mid-call, resumed", amount=4900, expected=("succeeded",))
AT_ONCE = Case(name="at-once", fault="ten at once", amount=800, expected=("succeeded",) * 10, note="one receipt")
RESTART = Case(name="restart", fault="repeated after a restart", amount=2500, expected=("succeeded",) * 2, note="same receipt")
CONFLICT = Case(
    name="conflict", fault="same payment, other amount", amount=1200, expected=("succeeded", "conflict"), note="other refused"
)
MAIL = Case(name="mail", fault="mail whose reply is lost", expected=("in-doubt", "in-doubt"), note="in doubt")

CASES = (REPLY_LOST, KILLED, AT_ONCE, RESTART, CONFLICT, MAIL)


def payment(column: str, case: Case) -> str:
    """The payment of a case: each column has its own, so that the provider counts them apart."""
    return f"pi_{column}_{case.name.replace('-', '_')}"


def mailbox(column: str) -> str:
    """Who gets the mail in this column."""
    return f"berg@{column}.example"


def refund(column: str, case: Case, *, amount: int | None = None) -> dict[str, Any]:
    """The tool call of a refund, in the shape of `POST /v1/tool-calls`."""
    return {
        "tool": "stripe.refund.create",
        "input": {"payment_intent": payment(column, case), "amount": amount or case.amount, "reason": "requested_by_customer"},
        "reference": f"case-{case.name}",
        "run": run_name(case),
    }


def mail(column: str) -> dict[str, Any]:
    """The tool call of a mail."""
    return {
        "tool": "sendgrid.mail.send",
        "input": {"from": "shop@shop.example", "to": mailbox(column), "subject": "Your refund", "text": "It is on its way."},
        "reference": f"case-{MAIL.name}",
        "run": run_name(MAIL),
    }


def run_name(case: Case) -> str:
    """The run in which the agent works a case."""
    return f"demo-{case.name}"


def case_of(effect: Mapping[str, Any]) -> tuple[str, Case] | None:
    """Column and case that an effect of the provider's belongs to; None if nobody planned it."""
    for column in ("plain", "outbox"):
        for case in CASES:
            if case is MAIL:
                recipients = [to["email"] for one in effect.get("personalizations", ()) for to in one["to"]]
                found = recipients == [mailbox(column)]
            else:
                found = effect.get("payment_intent") == payment(column, case)
            if found:
                return column, case
    return None


async def play(column: Column) -> None:
    """Plays every case in one column: the same faults at the same moments, whichever it is.

    The agent that is killed is resumed last: until its worker's lease has lapsed, the other cases have the time.
    """
    killed = {"calls": [refund(column.name, KILLED)]}
    await column.provider.plan(REFUNDS, "hang", delay_seconds=HELD_SECONDS)
    await column.agent_killed(KILLED, killed, when=lambda: column.provider.struck(REFUNDS))
    async with asyncio.TaskGroup() as group:
        group.create_task(_refunds(column))
        group.create_task(_mail(column))
    await _restart(column)
    await column.agent(KILLED, killed)
    await column.done(KILLED)
    if column.name == "outbox":
        # Asked once more, by another process and after the restart, it is still one mail, and still not told to be done.
        await column.agent(MAIL, {"calls": [mail(column.name)]})
    await column.done(MAIL)


async def _refunds(column: Column) -> None:
    """The refunds one after the other: the next request to the path meets a planned fault, whoever sends it."""
    await column.provider.plan(REFUNDS, "commit-then-drop")
    await column.agent(REPLY_LOST, {"calls": [refund(column.name, REPLY_LOST)]})
    await column.provider.struck(REFUNDS)
    await column.done(REPLY_LOST)
    # The first of the ten is held for a moment, so that the others come while it is under way.
    await column.provider.plan(REFUNDS, "delay", delay_seconds=SLOW_SECONDS)
    await column.agent(AT_ONCE, {"calls": [refund(column.name, AT_ONCE)], "at_once": 10})
    await column.provider.struck(REFUNDS)
    await column.done(AT_ONCE)
    calls = [refund(column.name, CONFLICT), refund(column.name, CONFLICT, amount=OTHER_AMOUNT)]
    await column.agent(CONFLICT, {"calls": calls})
    await column.done(CONFLICT)


async def _mail(column: Column) -> None:
    await column.provider.plan(MAILS, "commit-then-drop")
    await column.agent(MAIL, {"calls": [mail(column.name)]})
    await column.provider.struck(MAILS)


async def _restart(column: Column) -> None:
    task = {"calls": [refund(column.name, RESTART)]}
    await column.agent(RESTART, task)
    await column.restart()
    await column.agent(RESTART, task)
    await column.done(RESTART)
