"""outbox up: every deployable of Agent Outbox on one machine."""
