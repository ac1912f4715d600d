"""The Python client and the outbox command line."""
