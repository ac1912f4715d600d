"""Words and rules of Agent Outbox: pure, no I/O, no clock."""
