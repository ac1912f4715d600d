"""One door per technology: each outside library is imported in the one place that design section 3 gives it."""

import ast
from collections.abc import Iterator, Mapping

import pytest
from tests.rules.house import CLIENT_AND_SANDBOX, modules

DOORS: Mapping[str, frozenset[str]] = {
    "litestar": frozenset({"outbox_api"}),
    "granian": frozenset({"outbox_api"}),
    "asyncpg": frozenset({"outbox_store", "outbox_runtime.postgres"}),
    "arq": frozenset({"outbox_runtime.wakeups", "outbox_worker.main"}),
    "kopf": frozenset(),
}
"""Which packages or modules may import a library; everything below a name is meant with it."""

CLIENTS = frozenset(
    {"http.client", "urllib.request", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "requests", "urllib3"}
)
"""Libraries that reach a provider."""

CONNECTING = frozenset(
    {"socket.socket", "create_connection", "open_connection", "open_unix_connection", "create_unix_connection", "sock_connect"}
)
"""What of the standard library opens a connection; `socket` has more than that (the name of this host, constants)."""

SOCKET_DOORS = frozenset({"outbox_worker.transport"})

SERVER = frozenset({"outbox_domain", "outbox_store", "outbox_providers", "outbox_runtime", "outbox_api", "outbox_worker"})
"""The members that run where agents and providers are; `outbox_standalone` starts them on one machine and asks whether they live."""


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names of all that a module imports, wherever in the file, dynamic imports by a literal name included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                yield str(node.args[0].value)


def connecting(tree: ast.Module) -> Iterator[str]:
    """What the module uses of `CONNECTING`, as an attribute or imported by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            yield from {node.attr, f"{owner}.{node.attr}"} & CONNECTING
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield from {alias.name, f"{node.module}.{alias.name}"} & CONNECTING


def is_within(name: str, places: frozenset[str]) -> bool:
    """Whether the dotted `name` is one of `places` or lies below one."""
    return any(name == place or name.startswith(place + ".") for place in places)


def misplaced(module: str, tree: ast.Module) -> list[str]:
    """What the module does outside the door of its technology, one sentence each."""
    found = []
    names = set(imported(tree))
    for library, doors in DOORS.items():
        if any(is_within(name, frozenset({library})) for name in names) and not is_within(module, doors):
            found.append(f"{module} imports {library}; its door is {', '.join(sorted(doors)) or 'not built yet'}")
    if module.partition(".")[0] in SERVER and not is_within(module, SOCKET_DOORS):
        libraries = {library for library in CLIENTS if any(is_within(name, frozenset({library})) for name in names)}
        used = sorted(libraries | set(connecting(tree)))
        found += [f"{module} uses {name}; sockets are opened in {', '.join(SOCKET_DOORS)}" for name in used]
    return found


def test_every_technology_has_one_door() -> None:
    """litestar, granian, asyncpg, arq, kopf and provider sockets appear only behind their doors."""
    server = [module for module in modules() if module.package not in CLIENT_AND_SANDBOX]
    assert {module.package for module in server} >= SERVER
    assert [sentence for module in server for sentence in misplaced(module.name, module.tree)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("outbox_worker.execute", "import litestar"),
        ("outbox_domain.binding", "from litestar.types import ASGIApp"),
        ("outbox_worker.settle", "def f():\n    import asyncpg"),
        ("outbox_runtime.telemetry", "from asyncpg import Pool"),
        ("outbox_standalone.up", "import importlib\nimportlib.import_module('asyncpg')"),
        ("outbox_worker.execute", "from arq.worker import Worker"),
        ("outbox_runtime.settings", "import arq"),
        ("outbox_api.reserve", "import httpx2"),
        ("outbox_api.reserve", "from urllib import request"),
        ("outbox_providers.driver", "import socket\nsocket.socket()"),
        ("outbox_runtime.wakeups", "from socket import create_connection"),
        ("outbox_worker.execute", "import asyncio\nasync def f():\n    await asyncio.open_connection('a', 1)"),
        ("outbox_worker.transports", "import httpx2"),
        ("outbox_api.main", "import kopf"),
    ],
)
def test_a_planted_import_is_found(module: str, source: str) -> None:
    """Negative control: each library imported beside its door is reported."""
    assert len(misplaced(module, ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("outbox_api.routes.tool_calls", "from litestar import post"),
        ("outbox_store.reserve", "import asyncpg"),
        ("outbox_runtime.postgres", "import asyncpg"),
        ("outbox_worker.main", "from arq.connections import RedisSettings"),
        ("outbox_worker.transport", "import socket\nimport httpx2\nsocket.socket()"),
        ("outbox_worker.worker", "import socket\nsocket.gethostname()"),
        ("outbox_standalone.demo", "import httpx2"),
    ],
)
def test_the_doors_themselves_are_open(module: str, source: str) -> None:
    """A library imported at its door is no finding."""
    assert misplaced(module, ast.parse(source)) == []
