"""``marketdata algo``: strategies written, checked, back-tested, swept and run from the command line.

An entry point of the group ``marketdata.commands`` adds it to the ``marketdata`` command. Streams
and exit codes are those of all its commands: data on stdout, everything else on stderr.
"""

from __future__ import annotations

import typer

from algorithms.cli import checking, live, research, sweeping, template

app = typer.Typer(
    name="algo",
    no_args_is_help=True,
    help="Strategies: write, check, back-test, sweep and run them.",
)
for module in (template, checking, research, sweeping, live):
    module.register(app)
