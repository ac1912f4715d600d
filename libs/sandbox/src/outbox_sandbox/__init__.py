"""A provider that misbehaves on purpose and counts its effects."""
