"""``python -m marketdata.sandbox``: run the sandbox as a process, and print its URL."""

from __future__ import annotations

import argparse
import sys

from marketdata.sandbox.server import Sandbox, serve


def main() -> None:
    """Parse the arguments and serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m marketdata.sandbox", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--data", nargs="*", default=[], help="CSV, CSV.gz or Parquet files")
    parser.add_argument("--basis", choices=("raw", "split"), default="raw")
    parser.add_argument("--clock", default="system")
    parser.add_argument("--rate-limit", type=int)
    parser.add_argument("--free-plan", action="store_true")
    settings = vars(parser.parse_args())

    def ready(sandbox: Sandbox) -> None:
        sys.stdout.write(sandbox.url + "\n")
        sys.stdout.flush()

    serve(ready=ready, **settings)


if __name__ == "__main__":
    main()
