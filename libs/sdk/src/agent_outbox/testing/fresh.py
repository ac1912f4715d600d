"""Makes the fresh environment of a test: a project, and a key that is bound to it."""

from __future__ import annotations

import uuid
from pathlib import Path

import httpx2

from agent_outbox.testing.environment import Environment
from agent_outbox.testing.local_server import Server, StartFailed


def fresh_environment(server: Server, folder: Path) -> Environment:
    """A project that nobody has used, and a key of an agent in it.

    Args:
        server: where; its admin key must be of the environment that is tested in.
        folder: of the test.

    Raises:
        StartFailed: the server makes none.
    """
    project = f"test-{uuid.uuid4().hex}"
    environment = "_".join(server.admin_key.split("_")[1:-2])  # obx_<environment>_<id>_<secret>
    wish = {"environment": environment, "project": project, "actor": {"kind": "agent", "name": "agent"}}
    with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.admin_key}"}, timeout=30.0) as client:
        for path, body in (("/v1/projects", {"name": project}), ("/v1/scoped-keys", wish)):
            answer = client.post(path, json=body)
            if answer.status_code != 201:
                raise StartFailed(f"POST {path} of {server.url} answered {answer.status_code}: {answer.text[:500]}")
    return Environment(server=server, project=project, key=answer.json()["key"], folder=folder)
