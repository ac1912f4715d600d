"""`python -m outbox_api`."""

from outbox_api.main import main

if __name__ == "__main__":
    main()
