# make demo | test | lint | package | docs | doctor | clean, from a fresh clone with Python 3.10+ and pip.
#
#   PYTHON=python3.12          the interpreter that makes the environment
#   VENV=/path/to/env          use that environment; what is installed there is kept, only what is missing is added
#   PYTEST_ARGS="-m slow"      more arguments for pytest
#   JOBS=1                     processes that share the tests (2)
#   CPU=1                      the CPU builds of torch and torchvision, from pytorch's own index

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
JOBS ?= 2

PY := $(VENV)/bin/python
CPU_INDEX := https://download.pytorch.org/whl/cpu
STAMPS := $(VENV)/.paq_detr
SOURCES := setup.py $(wildcard pyproject.toml) $(shell find csrc -type f 2>/dev/null)

.PHONY: demo test lint package docs doctor install clean
.DEFAULT_GOAL := test

# An environment made here gets the tested releases of constraints.txt; a given one keeps its torch.
PINS := $$(test ! -f $(STAMPS)/made-here || echo -c constraints.txt)
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "paq_detr needs Python 3.10 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $(STAMPS)/made-here

$(STAMPS)/requirements: requirements.txt requirements-dev.txt constraints.txt | $(PY)
	@mkdir -p $(STAMPS)
	$(if $(CPU),$(PY) -m pip install torch torchvision $(PINS) --index-url $(CPU_INDEX))
	$(PY) -m pip install -r requirements-dev.txt $(PINS)
	@touch $@

$(STAMPS)/detectron2: projects/paq_detr/install_detectron2.py $(STAMPS)/requirements
	$(PY) projects/paq_detr/install_detectron2.py
	@touch $@

# A library that was built and is gone is built again.
LOST := $(shell test ! -f projects/paq_detr/_build_record.json || ls projects/paq_detr/_C*.so >/dev/null 2>&1 || echo yes)
.PHONY: lost
lost:

# Without a compiler this installs the pure-torch operators; `make doctor` says what was built.
$(STAMPS)/package: $(SOURCES) $(STAMPS)/detectron2 $(if $(LOST),lost)
	$(PY) -m pip install --no-build-isolation --no-deps -e .
	@touch $@

install: $(STAMPS)/package

demo: install
	$(PY) tools/demo.py

# A file's tests stay in one process: what they share is built once.
test: install
	$(PY) -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

lint: $(STAMPS)/requirements
	$(PY) -m ruff check .
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(VENV)/bin/clang-format --dry-run -Werror

# The sdist, a wheel from it, and that wheel at work; with the operators compiled anew: tools/check_package.py --operators
package: install
	$(PY) tools/check_package.py

# The site, in output/site.
docs: $(STAMPS)/docs
	$(PY) -m mkdocs build --strict --quiet --site-dir output/site

$(STAMPS)/docs: requirements-docs.txt $(STAMPS)/requirements
	$(PY) -m pip install -r requirements-docs.txt
	@touch $@

doctor: install
	$(PY) projects/paq_detr/doctor.py

clean:
	rm -rf .venv $(STAMPS)/package build output *.egg-info .pytest_cache .ruff_cache
	find projects tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	find projects -name '*.so' -delete
