"""Tests of your own tools: one server for the session, a fresh environment for each test, and the faults that agents meet.

```python
import pytest

from agent_outbox import ToolCall
from agent_outbox.testing import FAULTS, Environment


@pytest.mark.parametrize("fault", FAULTS)
def test_an_order_is_placed_once(outbox_environment: Environment, fault: str) -> None:
    call = ToolCall(tool="shop.order.place", input={"order": "o-1"})
    story = outbox_environment.play(fault, call, place_order, key="order:{order}", guarantee_class="A", receipt="id")
    story.assert_once(effects=shop.orders("o-1"))
```

The fixtures `outbox_server` and `outbox_environment` are there wherever this package is installed. The server is the one that
`OUTBOX_TEST_URL` and `OUTBOX_TEST_ADMIN_KEY` name, else an `outbox up` of the session's own, which needs `agent-outbox[local]`.
Children are forked, so this needs Linux or macOS.
"""

from agent_outbox.testing.environment import Environment
from agent_outbox.testing.local_server import Server, StartFailed
from agent_outbox.testing.story import FAULTS, Story

__all__ = ["FAULTS", "Environment", "Server", "StartFailed", "Story"]
