# `make train` sets everything up and trains; `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
# What to hand to pip as torch, such as TORCH_SPEC="torch==2.14.0"; empty lets setup choose.
TORCH_SPEC ?=
TORCH_VERSION := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
# Processes that share the Python tests; each takes about 1 GB.
TEST_JOBS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))
# Python compiles what is imported, and keeps it whatever the shell says: each program that a test
# starts would compile torch anew. Compiling everything in advance takes a minute.
PIP_INSTALL := python -m pip install --no-compile
unexport PYTHONDONTWRITEBYTECODE

STAMP := $(VENV)/.setup-done
EXTENSION_SOURCES := setup.py CMakeLists.txt $(wildcard csrc/*.h csrc/*.cpp)
# The environment's own cmake, ninja and linters come first, activated or not.
export PATH := $(abspath $(VENV)/bin):$(PATH)

.PHONY: help setup train test coverage cpp-test sanitize lint format typecheck bench clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(STAMP)  ## Make the environment, build the extension, install everything

train: setup  ## Train the quick preset; SEED=1 and ARGS="..." are handed on
	mudreamer-fast train quick $(if $(SEED),--train.seed $(SEED)) $(ARGS)

test: setup cpp-test  ## Run the C++ and the Python tests; ARGS="..." goes to pytest
	$(PYTEST) $(ARGS)

coverage: setup  ## Run the tests and show which lines of the package and of the replay they reach
	$(PYTEST) --cov --cov-report=term-missing:skip-covered $(ARGS)
	cmake -S . -B build/coverage -G Ninja -DREPLAY_MODULE=OFF -DREPLAY_TESTS=ON \
	    -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS="--coverage -fprofile-update=atomic" >/dev/null
	cmake --build build/coverage
	ctest --test-dir build/coverage
	gcovr --root . --filter csrc/ --exclude csrc/tests/ build/coverage

cpp-test: setup  ## Run the C++ tests
	$(call ctest,build/cpp,)

sanitize: setup  ## Run the C++ tests under ASan with UBSan, and under TSan
	$(call ctest,build/asan,address$(comma)undefined)
	$(call ctest,build/tsan,thread)

lint: setup  ## Check style and formatting
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(CPP_FILES)

format: setup  ## Format Python and C++
	ruff check --fix .
	ruff format .
	clang-format -i $(CPP_FILES)

typecheck: setup  ## Check types
	mypy

bench: setup  ## Run the benchmarks; ARGS="..." goes to pytest
	python -m mudreamer_fast.machine.allocator -m pytest bench --benchmark-only $(ARGS)

clean:  ## Remove what was built, but not the environment
	rm -rf build dist *.egg-info mudreamer_fast/*.so .mypy_cache .pytest_cache .ruff_cache
	rm -rf .hypothesis .benchmarks
	rm -f $(STAMP)

PYTEST := python -m pytest -n $(TEST_JOBS) --dist worksteal
CPP_FILES := $(wildcard csrc/*.h csrc/*.cpp csrc/tests/*.h csrc/tests/*.cpp)
comma := ,

# Builds and runs the C++ tests in folder $(1) with sanitizers $(2). TSan of older compilers cannot
# cope with strongly randomised addresses, so they are not, where that may be switched off.
define ctest
cmake -S . -B $(1) -G Ninja -DREPLAY_MODULE=OFF -DREPLAY_TESTS=ON -DREPLAY_SANITIZE=$(2) >/dev/null
cmake --build $(1)
$$(setarch -R true 2>/dev/null && echo setarch -R) ctest --test-dir $(1) --output-on-failure
endef

# Done again when the dependencies or the extension change. The pip that Python 3.10 brings searches
# for versions that fit together for longer than anyone waits; a newer one finds them at once.
$(STAMP): pyproject.toml $(EXTENSION_SOURCES)
	@$(require_system)
	test -x $(VENV)/bin/python || { $(PYTHON) -m venv $(VENV) && $(PIP_INSTALL) --upgrade pip; }
	$(install_torch)
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

# Names the Debian and Ubuntu packages of what pip cannot install.
define require_system
missing=; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
    { echo "Python 3.10 or newer is needed; name one with PYTHON=..." >&2; exit 1; }; \
$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
    missing="$$missing g++"; \
$(PYTHON) -c 'import os, sys, sysconfig; \
    sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
    missing="$$missing python3-dev"; \
$(PYTHON) -c 'import ctypes; ctypes.CDLL("libEGL.so.1")' 2>/dev/null || \
    missing="$$missing libegl1 libgl1-mesa-dri"; \
$(PYTHON) -c 'import ctypes; ctypes.CDLL("libOpenGL.so.0")' 2>/dev/null || \
    $(PYTHON) -c 'import ctypes; ctypes.CDLL("libGL.so.1")' 2>/dev/null || \
    missing="$$missing libopengl0"; \
if [ -n "$$missing" ]; then \
    echo "Not all that is needed is here. On Debian or Ubuntu:" >&2; \
    echo "    apt-get install$$missing" >&2; exit 1; \
fi
endef

# A torch that is there is left alone. Without an NVIDIA driver the CPU build is taken: from where
# pip looks anyway, else from PyTorch's own index; and the usual build, which is large but runs
# everywhere, where neither has it.
define install_torch
if python -c 'import torch' 2>/dev/null; then :; \
elif [ -n "$(TORCH_SPEC)" ]; then $(PIP_INSTALL) $(TORCH_SPEC); \
elif command -v nvidia-smi >/dev/null; then $(PIP_INSTALL) torch==$(TORCH_VERSION); \
else \
    $(PIP_INSTALL) --quiet torch==$(TORCH_VERSION)+cpu 2>/dev/null || \
    $(PIP_INSTALL) --retries 0 --timeout 20 --index-url $(TORCH_CPU_INDEX) \
        torch==$(TORCH_VERSION)+cpu 2>/dev/null || \
    $(PIP_INSTALL) torch==$(TORCH_VERSION); \
fi
endef
