"""Other libraries' names over this client, so that who moves here changes an import and not a program."""
