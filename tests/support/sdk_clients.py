"""Both clients of the SDK behind one face, so that a test holds for threads and for asyncio alike."""

import asyncio
from typing import Any

from agent_outbox import AsyncOutbox, Outbox

KINDS = ("sync", "async")


class Client:
    """An `Outbox`, or an `AsyncOutbox` with an event loop of its own, called in the same way."""

    def __init__(self, kind: str, **settings: Any) -> None:
        """Makes the client of that kind."""
        self._loop = asyncio.new_event_loop() if kind == "async" else None
        self.client: Any = Outbox(**settings) if self._loop is None else AsyncOutbox(**settings)

    def call(self, *arguments: Any, **fields: Any) -> Any:
        """`Outbox.call`."""
        return self._result(self.client.call(*arguments, **fields))

    def run(self, *arguments: Any, **fields: Any) -> Any:
        """`Outbox.run`."""
        return self._result(self.client.run(*arguments, **fields))

    def reserve(self, *arguments: Any, **fields: Any) -> Any:
        """`Outbox.reserve`."""
        return self._result(self.client.reserve(*arguments, **fields))

    def heartbeat(self, *arguments: Any, **fields: Any) -> Any:
        """`Outbox.heartbeat`."""
        return self._result(self.client.heartbeat(*arguments, **fields))

    def settle(self, *arguments: Any, **fields: Any) -> Any:
        """`Outbox.settle`."""
        return self._result(self.client.settle(*arguments, **fields))

    def void(self, *arguments: Any, **fields: Any) -> Any:
        """`Outbox.void`."""
        return self._result(self.client.void(*arguments, **fields))

    def resolve(self, *arguments: Any, **fields: Any) -> Any:
        """`Outbox.resolve`."""
        return self._result(self.client.resolve(*arguments, **fields))

    def get(self, *arguments: Any, **fields: Any) -> Any:
        """`Outbox.get`."""
        return self._result(self.client.get(*arguments, **fields))

    def receipt(self, *arguments: Any, **fields: Any) -> Any:
        """`Outbox.receipt`."""
        return self._result(self.client.receipt(*arguments, **fields))

    def find(self, **filters: Any) -> list[Any]:
        """Everything that `Outbox.find` yields."""
        if self._loop is None:
            return list(self.client.find(**filters))

        async def found() -> list[Any]:
            return [item async for item in self.client.find(**filters)]

        return self._loop.run_until_complete(found())

    def close(self) -> None:
        """Closes the connections and the loop."""
        if self._loop is None:
            self.client.close()
        else:
            self._loop.run_until_complete(self.client.aclose())
            self._loop.close()

    def _result(self, result: Any) -> Any:
        return result if self._loop is None else self._loop.run_until_complete(result)
