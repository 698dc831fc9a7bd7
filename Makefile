# make demo   the whole idea in a few minutes, no GPU needed
# make test   the tests of rung 1 (any machine)
# make lint   ruff and mypy
# make gpu    rung 2 in the environment at hand: tests, every kernel against the reference, host time, the language model
# make bench  every op with benchmark cases against its peers, on a GPU (ten minutes and more)
# make sanitize   the kernels under NVIDIA's compute-sanitizer (needs a GPU)
# make docs   regenerate the pages that are made from declarations

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RESULTS ?= build/results
TOP := bindings kernels plugins harness graph_api

.PHONY: demo test lint gpu bench sanitize docs clean

$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on --constraint constraints.txt \
	  --editable '.[cuda12,plugins,rtx,test]' | grep -v 'already satisfied' || true
	$(BIN)/python -m pip check
	touch $@

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

# Several processes, each with one thread of NumPy's: many threads for small matrices slow each other down.
test: $(STAMP)
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# mypy looks for packages on disk, not in the editable install's mapping: it is shown the tree under its import names.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/typing && rm -rf build/typing/trtforge && mkdir build/typing/trtforge
	@for name in $(TOP); do ln -sfn ../../../$$name build/typing/trtforge/$$name; done
	@for file in trtforge/*.py; do ln -sf ../../../$$file build/typing/trtforge/; done
	cd build/typing && ../../$(BIN)/mypy --config-file ../../pyproject.toml trtforge

gpu:
	$(PYTHON) -m pytest -q -m gpu tests
	mkdir -p $(RESULTS)
	$(PYTHON) -m trtforge check --device cuda --report $(RESULTS)/check.json
	$(PYTHON) -m pytest -q -m gpu benchmarks/test_launch_overhead.py benchmarks/test_networks.py

bench:
	mkdir -p $(RESULTS)
	$(PYTHON) -m trtforge bench --launch both --json $(RESULTS)/bench.json

sanitize:
	for tool in memcheck racecheck synccheck initcheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 3 $(PYTHON) -m trtforge.harness.sanitize || exit 1; \
	done

docs: $(STAMP)
	$(BIN)/python docs/generate.py

clean:
	rm -rf build $(VENV)
