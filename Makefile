# Two commands are enough: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
# What does not wait for one another is installed side by side.
MAKEFLAGS += --jobs=4
# A thousand processes start: each would compile everything that it imports.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
INSTALL := sh tests/install.sh

.PHONY: help demo lab unit test suite at-lowest on-ray fuzz faults soak lint tables debian clean

help:
	@echo "make demo   run examples/quickstart.ipynb in a real kernel and print what it printed"
	@echo "make lab    open it in JupyterLab"
	@echo "make unit   run the tests that need no broker, no browser and no model: seconds"
	@echo "make test   install what the tests need and run everything: pytest, ruff, mypy --strict, at the lowest versions, on Ray"
	@echo "make suite  the tests of make test without the two jobs after them"
	@echo "make at-lowest run the part of the suite marked so at the lowest versions, after the suite"
	@echo "make on-ray run the tests of a Ray cluster, after the suite"
	@echo "make lint   ruff and mypy alone"
	@echo "make fuzz MINUTES=5 SEED=1  attack the gateway's server for as long as asked"
	@echo "make faults break a running service in every way we know, and write what each cost: tests/faults/README.md"
	@echo "make soak MINUTES=60 SEED=1  load with a random fault every ten seconds"
	@echo "make tables write the tables of the README's reference from the code"
	@echo "make debian install the programs that the tests drive (as root, on a Debian)"
	@echo "make clean  remove the virtual environments"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Installs in seconds. Where it cannot be had, pip does it (tests/install.sh).
$(BIN)/uv: | $(BIN)/python
	$(BIN)/python -m pip --quiet --disable-pip-version-check install uv || true

$(VENV)/.demo: pyproject.toml avocado_magic/__init__.py | $(BIN)/uv
	$(INSTALL) $(VENV) --editable '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml avocado_magic/__init__.py | $(BIN)/uv
	$(INSTALL) $(VENV) --editable '.[test,lint]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python examples/run_notebook.py examples/quickstart.ipynb

lab: $(VENV)/.demo
	$(BIN)/jupyter lab $$([ "$$(id -u)" != 0 ] || echo --allow-root) examples/quickstart.ipynb

# The tests drive a real broker, a real database and a real browser. As root on a Debian they are installed; elsewhere
# the tests that need them are skipped, and pytest says which and why.
debian:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=""; \
	  command -v rabbitmq-server >/dev/null || [ -x /usr/sbin/rabbitmq-server ] || missing="$$missing rabbitmq-server"; \
	  command -v chromium >/dev/null || missing="$$missing chromium"; \
	  ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$$missing postgresql"; \
	  command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || missing="$$missing nginx-light"; \
	  command -v openssl >/dev/null || missing="$$missing openssl"; \
	  if [ -n "$$missing" ]; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  fi; \
	else \
	  echo "not root on a Debian: tests whose programs are missing are skipped"; \
	fi

tables: $(VENV)/.test
	$(BIN)/python tests/readme_tables.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/.test
	$(BIN)/python -m pytest --quiet tests/test_architecture.py tests/test_config.py tests/test_limits.py tests/test_http_server.py

.venv-lowest/.done: pyproject.toml tests/lowest_versions.py | $(BIN)/uv
	PYTHON=$(PYTHON) sh tests/lowest.sh --prepare

# Other people's clients, which must not decide with what versions the rest is tested; those in JavaScript where npm is.
.venv-clients/.done: tests/clients/requirements.txt tests/clients/package.json | $(BIN)/uv
	rm -rf .venv-clients
	$(PYTHON) -m venv .venv-clients
	cp tests/clients/package.json .venv-clients/
	if command -v npm >/dev/null; then \
	  (cd .venv-clients && npm install --silent --no-package-lock --no-audit --no-fund --ignore-scripts) & npm=$$!; \
	fi; \
	$(INSTALL) .venv-clients -r tests/clients/requirements.txt && \
	{ [ -z "$$npm" ] || wait $$npm; }
	@touch $@

# Ray and what comes with it must not decide with what versions the rest is tested, either.
.venv-ray/.done: pyproject.toml | $(BIN)/uv
	$(PYTHON) -m venv .venv-ray
	$(INSTALL) .venv-ray --editable '.[ray,embedded]' pytest pytest-timeout
	ln -sfn ../$(VENV)/avocado-test-cache .venv-ray/avocado-test-cache
	@touch $@

test: suite at-lowest on-ray

suite: $(VENV)/.test debian lint .venv-lowest/.done .venv-clients/.done .venv-ray/.done
	$(BIN)/python -m compileall -q avocado_magic
	$(BIN)/python tests/once_more.py --numprocesses 4 --dist loadfile --no-loadscope-reorder

# Both wait for the suite, which needs the machine for itself.
at-lowest: suite
	PYTHON=$(PYTHON) sh tests/lowest.sh

on-ray: suite
	.venv-ray/bin/python tests/once_more.py tests/test_ray.py

MINUTES ?= 5
SEED ?= 1
fuzz: $(VENV)/.test
	$(BIN)/python tests/fuzz.py --minutes $(MINUTES) --seed $(SEED)

faults: $(VENV)/.test debian
	$(BIN)/python -m pytest tests/faults --all-faults

soak: $(VENV)/.test
	$(BIN)/python tests/faults/soak.py --minutes $(MINUTES) --seed $(SEED)

clean:
	rm -rf $(VENV) .venv-lowest .venv-clients .venv-ray
