# Two commands for a fresh machine: `make demo` and `make test`. Each makes its own .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

CORE_TESTS := $(addprefix tests/,civitai cli demo domain download exchange index manage pictures prompts store system)

.PHONY: demo quick test test-all fixtures-check fuzz long-tests browser-tests peer-tests snapshots shells lint check types-linux types-windows types-macos tests coverage core-tests wheel-check bench clean

demo: $(VENV)/installed-render
	$(BIN)/civman demo

# What to run while writing: lint, and the tests that answer soonest; meant to stay under 40 seconds on two idle cores.
ONE_RENDER := tests/rendering/test_render_command.py::test_the_same_seed_gives_the_same_bytes_beside_each_other
QUICK := tests/domain tests/store tests/journeys tests/test_settings.py tests/test_guards.py \
	tests/rendering/test_render_planning.py $(ONE_RENDER)
NOT_QUICK := $(addprefix --ignore=tests/domain/test_,diffusers_classes.py header.py names.py)

quick: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest --quiet --numprocesses 2 --dist worksteal $(NOT_QUICK) $(QUICK)

test: lint tests

# All of `make test`, and what takes minutes more: every spelling of an adapter, every sampler with every schedule, every
# class of diffusers and the journeys without POSIX run; the libraries make the header fixtures anew, the header reader is
# fuzzed, the page is looked at in Chromium, images are compared with those of stable-diffusion.cpp, the types are checked
# for Linux, Windows and macOS, and completion is tried in real shells (zsh is skipped where it is not installed).
test-all: test check long-tests browser-tests peer-tests shells
	$(MAKE) --no-print-directory --jobs 2 fixtures-check fuzz

long-tests: $(VENV)/installed-all
	$(BIN)/pytest -m 'long and not peer' --numprocesses 2 --dist worksteal

# The page in a real Chromium, with screenshots in build/screenshots. Chromium comes from the system: it is installed here
# only for root on Debian and Ubuntu, and without one the tests say that they are skipped. axe-core (MPL-2.0) comes from npm.
AXE := build/axe/package/axe.min.js

browser-tests: $(VENV)/installed-browser
	@command -v chromium-headless-shell chromium chromium-browser google-chrome >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	apt-get install -y -qq --no-install-recommends chromium-headless-shell >/dev/null; } || \
	echo "no Chromium here: the tests in a browser are skipped"
	@test -f $(AXE) || { mkdir -p build/axe && cd build/axe && npm pack --silent axe-core@4.14.1 >/dev/null && \
	tar -xzf axe-core-4.14.1.tgz; } || echo "no axe-core from npm: its test is skipped"
	$(BIN)/pytest -m browser tests/serve

# Images of another program, which is built from source: that takes two minutes and a C++ compiler, which is installed here
# only for root on Debian and Ubuntu; without one the tests say that they are skipped. The wheel stays in build/peers.
# PEER_TESTS='peer and not long' leaves out the models of gigabytes. PEER_LIMIT='timeout 240' gives up the build after four
# minutes.
PEER_TESTS := peer
PEER_LIMIT :=
PEER_BUILD := CMAKE_BUILD_PARALLEL_LEVEL=2 CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DSD_WEBP=OFF -DSD_WEBM=OFF"

peer-tests: $(VENV)/installed-dev build/peers/built
	@test ! -f build/peers/built || \
	$(PIP) install --no-deps --no-index --find-links build/peers --requirement tests/peers.txt || \
	echo "the wheel in build/peers does not fit this Python: the comparison with stable-diffusion.cpp is skipped"
	$(BIN)/pytest -m '$(PEER_TESTS)' tests/diffusion/test_stable_diffusion_cpp.py

build/peers/built: tests/peers.txt | $(VENV)/installed-dev
	@mkdir -p build/peers
	@command -v c++ >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	apt-get install -y -qq --no-install-recommends g++ >/dev/null; } || \
	echo "no C++ compiler here: the comparison with stable-diffusion.cpp is skipped"
	@command -v c++ >/dev/null && \
	$(PEER_BUILD) $(PEER_LIMIT) $(PIP) wheel --no-deps --wheel-dir build/peers --requirement tests/peers.txt \
	&& touch $@ || echo "stable-diffusion.cpp could not be built: the comparison with it is skipped"

snapshots: $(VENV)/installed-dev  # after an intended change of help pages, tables or error messages
	$(BIN)/pytest --quiet --update-snapshots tests/cli/test_snapshots.py

shells: $(VENV)/installed-dev
	$(BIN)/pytest -m shell tests/cli/test_completion.py

fixtures-check: $(VENV)/installed-dev
	$(BIN)/python -W ignore tests/fixtures/make_headers.py --check

fuzz: $(VENV)/installed-dev
	PYTHONPATH=. $(BIN)/python tests/fuzz_header.py 60
	PYTHONPATH=.:tests $(BIN)/python tests/fuzz_header.py --commands 60
	PYTHONPATH=.:tests $(BIN)/python tests/fuzz_pickle.py 60

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

check: lint
	$(MAKE) --no-print-directory --jobs 3 --output-sync types-linux types-windows types-macos

types-linux: $(VENV)/installed-dev
	$(BIN)/mypy

# For other systems only the standard library differs: torch and the like are not read again, which takes minutes. The
# codes that are switched off are about values of such packages.
OTHER_SYSTEM := --follow-imports skip --allow-subclassing-any --no-warn-unused-ignores --no-warn-return-any \
	--allow-untyped-decorators --disable-error-code misc --disable-error-code valid-type \
	--disable-error-code var-annotated --disable-error-code call-arg

types-windows: $(VENV)/installed-dev
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 $(OTHER_SYSTEM)

types-macos: $(VENV)/installed-dev  # and the newest Python
	$(BIN)/mypy --platform darwin --python-version 3.14 --cache-dir .mypy_cache/darwin $(OTHER_SYSTEM)

tests: $(VENV)/installed-dev
	$(BIN)/pytest --numprocesses 2 --dist worksteal

coverage: $(VENV)/installed-dev
	$(BIN)/pytest --numprocesses 2 --dist worksteal --cov --cov-report=
	$(BIN)/coverage report --skip-covered --skip-empty

# What runs without torch, in an environment of its own, on every system: all rooms but those that draw.
core-tests:
	$(PYTHON) -m venv build/core-env
	build/core-env/$(notdir $(BIN))/python -m pip --disable-pip-version-check --quiet install --editable '.[test]'
	build/core-env/$(notdir $(BIN))/python -m pytest --numprocesses 2 --dist worksteal $(CORE_TESTS)

# What a user gets: the wheel alone, in an environment of its own.
wheel-check: $(VENV)/installed-dev
	rm -rf dist build/wheel-env build/wheel-library
	$(BIN)/python -m pip --disable-pip-version-check --quiet wheel --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build/wheel-env
	build/wheel-env/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt dist/*.whl
	cd build && wheel-env/bin/civman --version
	cd build && wheel-env/bin/civman demo --library wheel-library >/dev/null
	cd build && test -f wheel-library/library.db
	cd build && wheel-env/bin/civman list --library wheel-library
	cd build && wheel-env/bin/civman verify --library wheel-library
	@count=$$(build/wheel-env/bin/python -m pip --disable-pip-version-check list --format=freeze | grep -vcE '^(pip|setuptools|civman)=='); \
	echo "packages a core install brings: $$count"; test $$count -le 30

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/startup.py

$(VENV)/installed-render: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt --editable '.[render]'
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt tests/oracles.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt --editable '.[dev,render]'
	$(PIP) install --no-deps --requirement tests/oracles.txt
	touch $@

$(VENV)/installed-all: $(VENV)/installed-dev
	$(PIP) install --constraint constraints.txt --editable '.[cluster]'
	touch $@

$(VENV)/installed-browser: $(VENV)/installed-dev
	$(PIP) install --constraint constraints.txt --editable '.[browser]'
	touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .import_linter_cache
