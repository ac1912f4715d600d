"""Asking a server of Agent Outbox over HTTP, with errors a person can act on."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import httpx2
import rich_click as click

from agent_outbox.command_line import EXIT_KEY, EXIT_REFUSED, EXIT_UNREACHABLE

Function = TypeVar("Function", bound=Callable[..., Any])


class Refused(click.ClickException):
    """The server said no; its sentence is the message of the command that ends here."""

    exit_code = EXIT_REFUSED


class Unreachable(click.ClickException):
    """The server did not answer."""

    exit_code = EXIT_UNREACHABLE


class KeyRefused(click.ClickException):
    """The scoped key is missing, unknown, or does not reach this."""

    exit_code = EXIT_KEY


class Server:
    """A server of Agent Outbox, asked with one scoped key."""

    def __init__(self, url: str, key: str) -> None:
        """Talks to `url` as the holder of `key`; nothing is sent yet."""
        self.url = url.rstrip("/")
        self._client = httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=70.0)

    def __enter__(self) -> Server:
        """Hands out itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes its connections."""
        self._client.close()

    def get(self, path: str, **query: object) -> Any:
        """The JSON document at `path`.

        Args:
            path: below the server's URL.
            query: parameters; those that are None are left out, a trailing `_` of a name is dropped.

        Raises:
            Unreachable: the server did not answer.
            KeyRefused: the key is not good, or not for this.
            Refused: the server said no.
        """
        parameters: Mapping[str, str] = {name.rstrip("_"): str(value) for name, value in query.items() if value is not None}
        try:
            answer = self._client.get(path, params=parameters)
        except httpx2.TransportError as error:
            reason = f"{self.url} does not answer ({type(error).__name__}). Is it running? Set OUTBOX_URL."
            raise Unreachable(reason) from error
        if answer.status_code == 200:
            return answer.json()
        raise (KeyRefused if answer.status_code in (401, 403) else Refused)(_sentence(answer))

    def post(self, path: str, document: object, *, request_key: str) -> Any:
        """The JSON document that is answered to `document`.

        Args:
            path: below the server's URL.
            document: the body.
            request_key: the identity of this request; a repeat is answered with the same bytes and done once.

        Raises:
            Unreachable: the server did not answer.
            KeyRefused: the key is not good, or not for this.
            Refused: the server said no.
        """
        try:
            answer = self._client.post(path, json=document, headers={"Idempotency-Key": request_key})
        except httpx2.TransportError as error:
            reason = f"{self.url} does not answer ({type(error).__name__}). Is it running? Set OUTBOX_URL."
            raise Unreachable(reason) from error
        if answer.status_code in (200, 201):
            return answer.json()
        raise (KeyRefused if answer.status_code in (401, 403) else Refused)(_sentence(answer))

    def pages(self, path: str, **query: object) -> Iterator[dict[str, Any]]:
        """Every item of a list, page after page."""
        cursor: str | None = None
        while True:
            page = self.get(path, cursor=cursor, **query)
            yield from page["items"]
            if page.get("next_cursor") is None or page["next_cursor"] == cursor or not page["items"]:
                return
            cursor = page["next_cursor"]


def _sentence(answer: httpx2.Response) -> str:
    try:
        problem = answer.json()
        return f"{problem['detail']} ({problem['code']}, HTTP {answer.status_code})"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code} from {answer.url}, which is not an answer of Agent Outbox"


def with_server(command: Function) -> Function:
    """Give a command the options `--url` and `--key`, and the server they name as its first argument."""

    @click.option("--url", envvar="OUTBOX_URL", required=True, help="The server. [env: OUTBOX_URL]")
    @click.option("--key", envvar="OUTBOX_KEY", required=True, help="A scoped key. [env: OUTBOX_KEY]")
    @functools.wraps(command)
    def wrapped(url: str, key: str, **options: Any) -> Any:
        try:
            with Server(url, key) as server:
                return command(server, **options)
        except BrokenPipeError:  # Whoever reads us has seen enough.
            sys.stderr.close()
            raise SystemExit(0) from None

    return wrapped  # type: ignore[return-value]
