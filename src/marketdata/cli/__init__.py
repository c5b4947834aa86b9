"""The ``marketdata`` command: data on stdout, everything else on stderr, exit codes that mean something.

`commands` is the table of contents. Modules load their drivers inside the commands that use them,
so that ``marketdata --help`` stays fast.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (by default this process's) and return its exit code; see `exits`."""
    from marketdata.cli.app import run

    return run(arguments)
