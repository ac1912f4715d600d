"""Settings, telemetry, Postgres, Redis, wake-ups, health and shutdown of Agent Outbox."""
