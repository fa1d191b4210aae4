SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BENCH ?= first_light
NATIVE := native/pyproject.toml native/CMakeLists.txt $(wildcard native/src/* native/ingot_native/*.py)

.PHONY: setup demo test test-ray native-test native-sanitize native-clang native-arm check docs bench clean
.DEFAULT_GOAL := test

setup: $(VENV)/.ready

# The exact CPU build of torch first, so that nothing below pulls a larger one.
# The native engine needs Linux and a C++ compiler; without them everything else works, and says so.
$(VENV)/.ready: pyproject.toml $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@if [ "$$(uname -s)" = Linux ] && command -v c++ > /dev/null; then $(BIN)/python -m pip install --quiet ./native; \
	else echo "Not Linux, or no C++ compiler: the native engine is left out."; fi
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py $(if $(MODEL),--model "$(MODEL)" --data "$(DATA)") $(if $(REQUIRE),--require "$(REQUIRE)")

test: setup native-test
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage report --skip-covered --skip-empty | tail -n 25

# Ray and what it needs, 450 MB, in an environment over the usual one, which stays as it is.
RAY := $(VENV)/ray

$(RAY)/.ready: $(VENV)/.ready
	$(BIN)/python -m venv $(RAY)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	> "$$(echo $(RAY)/lib/python*/site-packages)/below.pth"
	$(RAY)/bin/python -m pip install --quiet "ingot[ray]"
	@touch $@

# Where Ray is not there after all, these tests fail instead of being skipped.
test-ray: setup $(RAY)/.ready
	INGOT_TEST_RAY=1 $(RAY)/bin/python -m pytest -q tests/serve/test_batch_on_ray.py tests/serve/deploy/test_deploy_ray.py

# The same kernels and engine from C++: every instruction set that this machine grants.
native-test:
	@if [ "$$(uname -s)" = Linux ] && command -v cmake > /dev/null && command -v c++ > /dev/null; then \
	cmake -S native -B native/build -DINGOT_TESTS=ON > /dev/null && cmake --build native/build --parallel \
	&& ctest --test-dir native/build --output-on-failure; \
	else echo "Not Linux, no cmake or no C++ compiler: the tests of the kernels are left out."; fi

# native_build(folder, options): apart from the usual build, with warnings as errors; then the tests.
native_build = cmake -S native -B native/build/$(1) -DINGOT_TESTS=ON -DINGOT_STRICT=ON $(2) > /dev/null \
	&& cmake --build native/build/$(1) --parallel && ctest --test-dir native/build/$(1) --output-on-failure

native-sanitize:
	$(call native_build,asan,-DINGOT_ASAN=ON)
	$(call native_build,tsan,-DINGOT_TSAN=ON)

native-clang:
	$(call native_build,clang,-DCMAKE_CXX_COMPILER=clang++)

# What any machine can run, on one that is not x86: cross-compiled, run by an emulator.
native-arm:
	$(call native_build,arm,-DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/native/arm.cmake)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/house

docs: setup
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	$(BIN)/mkdocs build --strict

bench: setup
	$(BIN)/python -m pip install --quiet -e ".[peers]"
	$(BIN)/python benchmarks/$(BENCH).py

clean:
	-$(BIN)/python examples/demo.py --stop
	rm -rf demo build native/build dist site .coverage .mypy_cache .ruff_cache .hypothesis .import_linter_cache
