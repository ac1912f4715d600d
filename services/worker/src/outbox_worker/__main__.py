"""`python -m outbox_worker`."""

from outbox_worker.main import main

if __name__ == "__main__":
    main()
