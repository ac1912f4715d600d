"""Commands that need nothing but a server to talk to."""
