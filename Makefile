# One door for every tool. `make help` lists the targets.

PYTHON ?= python3
PORT   ?= $(or $(SEGVLM_PORT),8000)

VENV := .venv
BIN  := $(VENV)/bin
# Python compiles what it imports when it first does; pip would compile everything.
PIP  := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile \
        -c constraints.txt

# A stamp is newer than the files that decide what is installed, or the install runs again.
SERVE_STAMP := $(VENV)/.installed-serve
FULL_STAMP  := $(VENV)/.installed-full
PINS        := pyproject.toml constraints.txt

# Other people's clients, which the tests run: an environment for each list in tests/clients/.
CLIENTS       := .venv-clients
CLIENT_STAMPS := $(patsubst tests/clients/%.txt,$(CLIENTS)/%/.installed, \
                   $(wildcard tests/clients/*.txt))

.DEFAULT_GOAL := help
.PHONY: help serve test check format clean sbom audit

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# On a person's machine only that machine is answered; SEGVLM_HOST=0.0.0.0 opens it.
serve: $(SERVE_STAMP) ## start the service with the bundled model (PORT=9000 for another port)
	@exec env SEGVLM_HOST="$${SEGVLM_HOST:-127.0.0.1}" $(BIN)/python -m service serve --port $(PORT)

# Most tests run on all cores, a file each, the longest first (tests/conftest.py); those that
# measure times come after them. What was compiled is kept, whatever the shell says: the tests
# start dozens of processes, and one that compiles the torch that it imports takes seconds longer.
MEASURING := tests/benchmarks/test_service_benchmarks.py
test: export PYTHONDONTWRITEBYTECODE :=
test: $(FULL_STAMP) $(CLIENT_STAMPS) ## run the tests (PYTEST_ARGS="-k letterbox" to choose)
ifdef PYTEST_ARGS
	@$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
	  --no-loadscope-reorder tests --ignore $(MEASURING)
	@$(BIN)/python -m pytest $(MEASURING)
endif

check: $(FULL_STAMP) ## ruff, formatting, mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(FULL_STAMP) ## let ruff fix and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove the environment and every cache
	@rm -rf $(VENV) $(AUDIT) $(CLIENTS) dist *.egg-info
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis

# pip is the last thing that venv writes, so a half-made environment is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "SegVLM needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "No virtual environment: install your system's python3-venv package"; exit 1; }

# The service alone: no torch, a small download.
$(SERVE_STAMP): $(PINS) | $(BIN)/pip
	@echo "Installing the service into $(VENV) (without torch)"
	@$(PIP) -e '.[serve]'
	@touch $@

# Everything: the service's environment, extended in place.
$(FULL_STAMP): $(PINS) | $(BIN)/pip
	@echo "Installing training, service and development tools into $(VENV) (torch takes a while)"
	@$(PIP) -e '.[train,serve,ray,dev]'
	@touch $@ $(SERVE_STAMP)

# The lists are complete, so nothing is resolved and two clients' wishes cannot clash.
# tests/clients/NAME.sh, where there is one, adds what pip cannot.
$(CLIENTS)/%/.installed: tests/clients/%.txt | $(BIN)/pip
	@echo "Installing the clients of $< into $(@D)"
	@$(PYTHON) -m venv --clear --without-pip $(@D)
	@$(BIN)/python -m pip --python $(@D)/bin/python --disable-pip-version-check --quiet install \
	  --no-compile --no-deps -r $<
	@if [ -f $(<:.txt=.sh) ]; then bash $(<:.txt=.sh) $(@D); fi
	@touch $@

# Tools that look at the service from outside; they have an environment of their own.
AUDIT       := .venv-audit
AUDIT_STAMP := $(AUDIT)/.installed
AUDIT_TOOLS := cyclonedx-bom==7.5.0 pip-audit==2.10.1
EXTRAS      ?= serve,traces
SBOM        ?= dist/segvlm-service.cdx.json

sbom: $(AUDIT_STAMP) ## list what the CPU image's service is made of (CycloneDX)
	@rm -rf $(AUDIT)/listed && $(PYTHON) -m venv --without-pip $(AUDIT)/listed
	@$(AUDIT)/bin/python -m pip --python $(AUDIT)/listed/bin/python --disable-pip-version-check \
	  --quiet install --no-compile -c constraints.txt -e '.[$(EXTRAS)]'
	@mkdir -p $(dir $(SBOM)) && $(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml \
	  --output-reproducible --output-file $(SBOM) $(AUDIT)/listed/bin/python
	@echo "$(SBOM)"

# pip-audit writes its table only if it found something, and asks PyPI for its data.
audit: $(AUDIT_STAMP) ## look all pinned dependencies up in PyPI's data of known vulnerabilities
	@mkdir -p dist && rm -f dist/audit.txt
	@$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict \
	  --progress-spinner off --output dist/audit.txt $(AUDIT_ARGS) 2>dist/audit.log \
	  && echo "No known vulnerability in what constraints.txt names" && exit 0; \
	if [ -s dist/audit.txt ]; then cat dist/audit.txt; else \
	  echo "Nothing was checked, the data cannot be read: $$(tail -n 1 dist/audit.log)"; fi; exit 1

$(AUDIT_STAMP): Makefile
	@echo "Making $(AUDIT) for $(AUDIT_TOOLS)"
	@$(PYTHON) -m venv --clear $(AUDIT)
	@$(AUDIT)/bin/python -m pip --disable-pip-version-check --quiet install $(AUDIT_TOOLS)
	@touch $@
