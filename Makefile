# One command per intent; CI runs the same ones.
PYTHON ?= python3
VENV := .venv
PEERS := .peers/venv
BIN := $(VENV)/bin
LOCKED := constraints/locked.txt
LOWEST := .venv-lowest
TORCH := .venv-torch
# An index whose torch comes without CUDA's libraries, which are 2 GB, where the default one's does not.
TORCH_INDEX ?=
CONFIG ?= examples/smollm2-135m-instruct/config.yaml
GPU_PYTHON ?= python3
GPU_MODEL ?= Qwen/Qwen2.5-0.5B-Instruct

.DEFAULT_GOAL := help
.PHONY: help serve install dev test test-fast coverage test-python test-lowest test-torch test-cuda test-gpu constraints check lint-imports lock format proto reference docs bench peers clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: install ## a served chat model, from a fresh machine (CONFIG=FILE for another model)
	$(BIN)/briton serve --config $(CONFIG)

install: $(VENV)/.installed ## the package, in .venv

dev: $(VENV)/.dev ## the package and what its tests need, in .venv

test: dev ## everything, from a fresh machine to a green run
	$(BIN)/python -m tests.run

test-fast: dev ## the tests that need no model
	$(BIN)/python -m tests.run --fast

coverage: dev ## test-fast, and which lines of the packages it did not run
	$(BIN)/python -m tests.run --fast --coverage

test-gpu: ## the real TensorRT-LLM on a machine with a GPU (GPU_PYTHON has it installed, GPU_MODEL is built), and a benchmark
	$(GPU_PYTHON) -m tests.gpu.run --model $(GPU_MODEL)

test-python: ## test-fast on another Python (PYTHON=python3.13), in an environment of its own
	$(MAKE) test-fast VENV=.venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

test-lowest: $(LOWEST)/.installed ## test-fast with the oldest versions that our requirements allow
	$(LOWEST)/bin/python -m tests.run --fast

test-torch: $(TORCH)/.installed ## the GPU's token masks by a torch for CPUs, in .venv-torch
	$(TORCH)/bin/python tests/torch_device/run.py --device cpu

test-cuda: ## the same on a GPU, by the torch of GPU_PYTHON; needs neither TensorRT-LLM nor an installation
	$(GPU_PYTHON) tests/torch_device/run.py --device cuda

constraints: dev ## whether our dependencies go together with TensorRT-LLM's
	$(BIN)/python -m pytest tests/test_constraints.py

check: dev lint-imports ## ruff, mypy --strict, import contracts, dependencies, generated files unchanged
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/deptry briton server engine_builder
	$(BIN)/python tests/generated.py --check
	$(BIN)/python -m tools.docs --check

lint-imports: dev ## who may import whom: pyproject.toml, [tool.importlinter]
	$(BIN)/lint-imports

lock: dev ## constraints/locked.txt: the versions that `make dev`, `make docs` and the image for CPUs install, the newest for each Python
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra docs --universal --python-version 3.10 --upgrade --no-annotate \
		--custom-compile-command "make lock" --quiet --output-file $(LOCKED)

format: dev ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: dev ## briton/v1 from proto/
	$(BIN)/python tests/generated.py

reference: dev ## the documentation's tables, pictures and the config's JSON schema, from the code
	$(BIN)/python -m tools.docs

docs: $(VENV)/.docs ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install ## our executor and server measured, against the peers where `make peers` has put them
	$(BIN)/python benchmarks/bench_step.py
	$(BIN)/python benchmarks/bench_serving.py

peers: $(PEERS)/.installed ## what the benchmarks compare with, in .peers/venv; llama.cpp is compiled, which takes minutes

clean: ## remove the environments
	rm -rf .venv .venv-*

# Debian's python3 comes without ensurepip: then the pip beside it fills the environment.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "Python 3.10 to 3.13 is needed, and $(PYTHON) is another: make install PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.installed: pyproject.toml $(LOCKED) | $(VENV)/.created
	$(BIN)/python -m pip install --quiet -c $(LOCKED) --editable '.[mpi]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(LOCKED) | $(VENV)/.created
	$(BIN)/python -m pip install --quiet -c $(LOCKED) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.docs: pyproject.toml $(LOCKED) | $(VENV)/.created
	$(BIN)/python -m pip install --quiet -c $(LOCKED) --editable '.[docs]'
	@touch $@

$(LOWEST)/.installed: pyproject.toml | $(VENV)/.dev
	$(PYTHON) -m venv --clear $(LOWEST) || { $(PYTHON) -m venv --clear --without-pip $(LOWEST) && \
		$(PYTHON) -m pip --python $(LOWEST)/bin/python install --quiet pip; }
	$(BIN)/uv pip compile pyproject.toml --extra dev --resolution lowest-direct --python $(LOWEST)/bin/python \
		--no-annotate --quiet --output-file $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --quiet -r $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(TORCH)/.installed: tests/torch_device/requirements.txt
	$(PYTHON) -m venv --clear $(TORCH) || { $(PYTHON) -m venv --clear --without-pip $(TORCH) && \
		$(PYTHON) -m pip --python $(TORCH)/bin/python install --quiet pip; }
	$(TORCH)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $<
	@touch $@

$(PEERS)/.installed: benchmarks/peers/requirements.txt benchmarks/peers/compiled.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet -r benchmarks/peers/requirements.txt
	-CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" timeout 900 nice -n 19 \
		$(PEERS)/bin/python -m pip install --quiet --no-binary llama-cpp-python -r benchmarks/peers/compiled.txt
	@touch $@
