"""All SQL of Agent Outbox, one module per table, and the migrations runner."""
