"""Drivers and the catalog of tool contracts of Agent Outbox."""
