"""Run the supervisor: ``python -P .../marketdata/embedded/__main__.py HOME LOCK_FD``.

Run by its path, because ``import marketdata`` imports pandas, which a process that only waits
should not carry: the package is entered below its ``__init__``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType


def _enter_package() -> None:
    package = ModuleType("marketdata")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules.setdefault("marketdata", package)


if __name__ == "__main__":
    _enter_package()
    from marketdata.embedded.watch import main

    main(Path(sys.argv[1]), int(sys.argv[2]))
