"""One module per noun of the HTTP API; each says which requests it answers and how."""
