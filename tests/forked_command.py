"""What the launcher that `tests.warm_start` forks runs: a command that leaves its process's end to the launcher."""

import sys

from fastselfie.cli import status

if __name__ == "__main__":
    sys.exit(status(sys.argv[1:]))
