"""`python -m bench report|compare|growth|modes`: see `--help` of each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench import compare, growth, modes
from bench.report import command as report
from fastselfie.errors import UserError


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; its exit status: 0 done, 1 something that should run failed, 2 a mistake in what was given."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (report, compare, growth, modes):
        module.add_parser(commands)
    given = parser.parse_args(words)
    try:
        status: int = given.run(given)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
