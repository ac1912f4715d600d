"""The worker of Agent Outbox: claims, sends, settles, recovers."""
