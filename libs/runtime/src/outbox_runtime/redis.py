"""Redis: clients that never keep a caller waiting for long.

Redis carries hints only; whatever is lost with it costs time, never truth. Source: design sections 8 and 17,
the sharp edges of arq's own settings (it does not decode a password in a URL, ignores TLS options, and checks no host name).
"""

import asyncio
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import RedisError

from outbox_runtime.settings import RedisSettings

AWAY: tuple[type[BaseException], ...] = (RedisError, OSError, TimeoutError, asyncio.IncompleteReadError)
"""What is raised while Redis is away, loading, full, read-only or refusing the password."""

CONNECTIONS_MAX = 32


def connection_pool(settings: RedisSettings) -> ConnectionPool:
    """A pool of connections after the settings; nothing is connected yet.

    The URL's password is percent-decoded, its query may hold TLS options (`ssl_ca_certs=...`), and with `rediss://` the host
    name is checked unless the query says `ssl_check_hostname=false`. No command is ever repeated by the client.

    Raises:
        ValueError: there is no Redis in the settings, or its URL cannot be understood.
    """
    if settings.redis_url is None:
        raise ValueError("no Redis is set")
    url = settings.redis_url.get_secret_value()
    options: dict[str, Any] = {
        "socket_connect_timeout": settings.redis_connect_seconds,
        "socket_timeout": settings.redis_command_seconds,
        "max_connections": CONNECTIONS_MAX,
    }
    scheme = urlsplit(url).scheme
    if scheme == "rediss":
        options["ssl_check_hostname"] = True
    if scheme != "unix":
        options["socket_keepalive"] = True
    return ConnectionPool.from_url(url, **options)


def open_client(settings: RedisSettings) -> Redis:
    """A client over a pool of its own; close it with `close_client`."""
    return Redis(connection_pool=connection_pool(settings))


async def close_client(client: Redis) -> None:
    """Close a client and every connection of its pool; Redis being away does not matter."""
    try:
        await client.aclose(close_connection_pool=True)
    except AWAY:
        # The connections are gone, which is what was wanted.
        return
