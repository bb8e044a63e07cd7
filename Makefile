# Everything from a fresh clone: `make demo`, `make test`. Needs Python 3.11 or later, and a network once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= gpu-check

.PHONY: demo test lint bench gpu-check clean

# Set up anew when what is installed changed.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "FastSelfie needs Python 3.11 or later; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/ready
	$(BIN)/fastselfie demo --out demo

# Two at a time: the tests compute with one thread each. A file's tests stay together and share its runs.
test: $(VENV)/ready
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# `kernels/` and `pipelines/` lie beside the package that they are installed into; the type checker sees them inside.
lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types/fastselfie
	ln -s $(CURDIR)/fastselfie/* $(CURDIR)/kernels $(CURDIR)/pipelines build/types/fastselfie/
	MYPYPATH=build/types $(BIN)/mypy -p fastselfie
	MYPYPATH=build/types $(BIN)/mypy --explicit-package-bases bench examples tests

bench: $(VENV)/ready
	$(BIN)/python -m bench.training_step --out bench/results/training_step_cpu.json

# On a machine with a GPU, with its own Python and packages and without a network: logs and JSON go to OUT.
gpu-check:
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e .
	$(PYTHON) -m bench.gpu_check --out $(OUT)

clean:
	rm -rf $(VENV) build demo gpu-check *.egg-info
