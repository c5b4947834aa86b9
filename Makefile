# A clean clone, Python 3.12 or 3.13 and make are all the set-up there is: every target first makes
# .venv and installs into it; later runs find it there. Works with GNU make 3.81 (macOS).

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

# From the command line only, so that a stray environment variable changes nothing:
#   make demo DATA=prices.csv.gz     make test ARGS='-k coverage'     make PYTHON=/opt/py/bin/python3.12
DATA   :=
ARGS   :=
PYTHON :=
FAULTS :=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-faults model bench check format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo "  DATA=PATH (demo) and ARGS='...' (demo, test, test-faults, model, bench) are passed on; PYTHON=PATH chooses the interpreter."

install: $(STAMP) ## make .venv with everything in it

demo: $(STAMP) ## the three tiers at work, offline, in under two minutes
	@$(BIN)/marketdata demo $(if $(DATA),--data "$(DATA)") $(ARGS)

test: $(STAMP) ## every test, on real PostgreSQL and Redis servers
	@$(BIN)/python -m pytest $(ARGS)

# FAULTS=7 draws the same faults again that run 7 drew; a failing test says how to repeat it alone.
test-faults: $(STAMP) ## the tests again, behind proxies that cut, refuse and lose answers
	@MARKETDATA_TEST_FLAKY=$(or $(FAULTS),$$(date +%s)) $(BIN)/python -m pytest tests/contracts tests/integration tests/faults $(ARGS)

model: $(STAMP) ## ten minutes of random work and faults against a model that knows the right answers
	@$(BIN)/python -m tests.faults.model --seconds $(or $(SECONDS),600) --seed $(or $(SEED),$$(date +%s)) $(ARGS)

bench: $(STAMP) ## the benchmarks, each beside its anchor
	@$(BIN)/python -m benchmarks $(ARGS)

check: $(STAMP) ## ruff, mypy --strict and the layers (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## sort imports and format the code
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

clean: ## remove .venv, caches and builds; leaves the data in MARKETDATA_HOME alone
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A copied or moved tree would run the code of the place it came from: its stamp names that place.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

# One interpreter that runs and is new enough: a name on PATH proves nothing (version managers
# leave shims there that only print an error), so each candidate is run.
define FIND_PYTHON
fits() { "$$1" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1; }; \
uv=; for each in "$$(command -v uv 2>/dev/null)" "$${HOME:-/nonexistent}/.local/bin/uv"; do \
  if [ -x "$$each" ] && "$$each" --version >/dev/null 2>&1; then uv=$$each; break; fi; \
done; \
python=; for each in $(or $(PYTHON),python3.12 python3.13 python3 python \
    "$${HOME:-/nonexistent}"/.pyenv/versions/3.12*/bin/python "$${HOME:-/nonexistent}"/.pyenv/versions/3.13*/bin/python); do \
  if fits "$$each"; then python=$$each; break; fi; \
done; \
if [ -z "$$python" ] && [ -n "$$uv" ] && [ -z "$(PYTHON)" ]; then \
  python=$$("$$uv" python find '>=3.12,<3.14' 2>/dev/null) || python=; \
fi; \
if [ -z "$$python" ]; then \
  echo "marketdata needs Python 3.12 or 3.13; none of these is one: $(or $(PYTHON),python3.12 python3.13 python3 python)." >&2; \
  echo "Install one (Debian, Ubuntu: apt install python3.12 python3.12-venv; macOS: brew install python@3.12; uv python install 3.12)" >&2; \
  echo "or name yours: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.12" >&2; \
  exit 1; \
fi
endef

define MAKE_VENV
if ! fits $(BIN)/python || [ "$$(cat $(VENV)/.made 2>/dev/null)" != "$(CURDIR)" ]; then \
  rm -rf $(VENV); \
  if "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then "$$python" -m venv $(VENV) || exit 1; \
  elif [ -n "$$uv" ]; then "$$uv" venv -q --seed --python "$$python" $(VENV) || exit 1; \
  else \
    version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
    echo "Python $$version is here, but its venv module is not. Debian, Ubuntu: apt install python$$version-venv" >&2; \
    exit 1; \
  fi; \
  echo "$(CURDIR)" > $(VENV)/.made; \
fi
endef

# uv where it can be had (seconds), else pip (a minute or two). The dev group is handed over as a
# requirements file, which every pip and uv understands.
define INSTALL
$(BIN)/python -c 'import pathlib, tomllib; print(*tomllib.loads(pathlib.Path("pyproject.toml").read_text("utf-8"))["dependency-groups"]["dev"], sep="\n")' \
  > $(VENV)/dev-requirements.txt || exit 1; \
what="-c constraints.txt -e .[all] -r $(VENV)/dev-requirements.txt"; \
if [ -z "$$uv" ] && $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt uv >/dev/null 2>&1; then \
  uv=$(BIN)/uv; \
fi; \
if [ -z "$$uv" ] || ! "$$uv" pip install -q --python $(BIN)/python $$what 2>$(VENV)/uv.log; then \
  echo "Installing with pip instead of uv ..." >&2; \
  $(BIN)/python -m pip install -q --disable-pip-version-check $$what || exit 1; \
fi
endef

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once; about a minute) ..." >&2
	@$(FIND_PYTHON); $(MAKE_VENV); $(INSTALL); echo "$(CURDIR)" > $@
