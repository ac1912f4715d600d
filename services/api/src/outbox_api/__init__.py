"""The API of Agent Outbox: authenticates, decides, reserves, waits."""
