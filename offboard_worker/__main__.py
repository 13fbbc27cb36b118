"""`python -m offboard_worker` is `offboard`."""

from offboard_worker.cli import main

if __name__ == "__main__":
    main()
