"""Settings: merged field by field, None is a value, and what cannot be used is refused with a sentence."""

from typing import Any

import pytest

from agent_outbox import UNSET, AsyncOutbox, Outbox, Settings, ToolCall
from agent_outbox.errors import SettingsError

URL = "http://outbox.example.com"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of whoever runs the tests do not count."""
    monkeypatch.delenv("OUTBOX_URL", raising=False)
    monkeypatch.delenv("OUTBOX_KEY", raising=False)


@pytest.mark.parametrize("client", [Outbox, AsyncOutbox])
def test_the_environment_states_url_and_key(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """OUTBOX_URL and OUTBOX_KEY hold where nothing else is said; None as an argument is said."""
    monkeypatch.setenv("OUTBOX_URL", URL)
    monkeypatch.setenv("OUTBOX_KEY", "obx_from_environment\n")
    monkeypatch.setenv("OUTBOX_SPOOL", "/nowhere/spool")
    assert client().settings == Settings(url=URL, key="obx_from_environment", spool="/nowhere/spool")
    assert client(key="obx_given").settings.key == "obx_given"
    assert client(key=None).settings.key is None
    assert client(url=UNSET).settings.url == URL
    with pytest.raises(SettingsError, match="OUTBOX_URL"):
        client(url=None)


@pytest.mark.parametrize("client", [Outbox, AsyncOutbox])
def test_a_derived_client_changes_what_is_said(client: Any) -> None:
    """`using` keeps what is left out, takes what is given, None included, and leaves the first client as it is."""
    first = client(url=URL, run="thread-1", connection="stripe-eu", wait=3)
    derived = first.using(run=None, reference="case-1")
    assert (derived.settings.run, derived.settings.reference) == (None, "case-1")
    assert (derived.settings.connection, derived.settings.wait) == ("stripe-eu", 3)
    assert first.settings.run == "thread-1"


def test_the_deadline_follows_the_wait() -> None:
    """A call may take 35 s longer than its wait, unless the deadline is said; None is without end."""
    assert Settings(wait=100).deadline_seconds == 135
    assert Settings(wait=None).deadline_seconds == 60
    assert Settings(wait=100, deadline=10).deadline_seconds == 10
    assert Settings(deadline=None).deadline_seconds is None


@pytest.mark.parametrize(
    "url", ["", "outbox.example.com", "ftp://outbox", "http://", "http://user:secret@outbox", "http://outbox/?a=b", "http://a b"]
)
def test_addresses_that_are_none_are_refused(url: str) -> None:
    """What is no http(s) address of a server is a SettingsError when the client is made, which is also a ValueError."""
    with pytest.raises(SettingsError) as caught:
        Outbox(url=url)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("key", ["", "obx two", "obx\nInjected: header", "öbx"])
def test_keys_that_are_none_are_refused_without_being_repeated(key: str) -> None:
    """What cannot stand in a header is refused, and the sentence does not hold it."""
    with pytest.raises(SettingsError) as caught:
        Outbox(url=URL, key=key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"wait": -1}, {"wait": float("nan")}, {"wait": "5"}, {"deadline": 0}, {"deadline": float("inf")}, {"wait": True}]
)
def test_times_that_are_none_are_refused(settings: dict[str, Any]) -> None:
    """A wait or deadline that cannot be waited is refused."""
    with pytest.raises(SettingsError):
        Outbox(url=URL, **settings)


def test_the_key_is_not_shown() -> None:
    """Neither the client's nor the settings' text shows the key."""
    client = Outbox(url=URL, key="obx_secret")
    assert "obx_secret" not in repr(client) + repr(client.settings) + str(client)
    assert URL in repr(client)


@pytest.mark.parametrize("key", ["", "two words", 'a"b', "ü", "x" * 256, 7])
def test_request_keys_that_are_none_are_refused(key: Any) -> None:
    """What cannot be an Idempotency-Key is refused before anything is sent."""
    with pytest.raises(SettingsError, match="request_key"):
        Outbox(url=URL).call(tool="sandbox.echo", input={}, request_key=key)


@pytest.mark.parametrize(
    "arguments", [{}, {"tool": "a.b"}, {"input": {}}, {"call": ToolCall(tool="a.b", input={}), "tool": "a.b"}]
)
def test_a_call_says_what_it_wants_once(arguments: dict[str, Any]) -> None:
    """Neither a ToolCall nor tool and input, or both, is a TypeError."""
    with pytest.raises(TypeError):
        Outbox(url=URL).call(**arguments)
