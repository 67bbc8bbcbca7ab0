# make run    serve an example at http://localhost:5000 (make run EXAMPLE=...: another directory of examples/)
# make test   lint, then the tests on every supported CPython that this machine has; missing packages are installed
# make lint   ruff and mypy
# make docs   build the documentation into build/docs, where any warning is an error
# make bench  compare the speed with other servers, about an hour (make bench BENCH=--quick: four minutes)
# make wheel  build the source distribution, and a wheel with compiled modules for this machine, into dist
# make soak   test a server with every fault at the same time for half an hour (make soak SOAK="--mode threads")
# make fuzz   fuzz the protocol, pure and compiled, and keep new inputs (make fuzz FUZZ="--seconds 60 protocol")
# make sanitize  test the compiled modules with AddressSanitizer and UndefinedBehaviorSanitizer
# make original  run the programs for 0.6.1 on 0.6.1 itself, and compare what clients see with the records of it
# make clean  remove the virtual environments and all built files
#
# The virtual environments are created on demand: .venv of $(PYTHON) for ordinary work, .venvs/3.N of the other
# interpreters, .venvs/lowest with the lowest supported versions. Each has its own uWSGI, compiled with the loop
# engines gevent, asyncio and greenlet. .venvs/testing-3.N is Debian testing: see .ci/testing.

PYTHON    ?= python3
EXAMPLE   ?= blueprints
SUPPORTED := 3.10 3.11 3.12 3.13 3.14
LOWEST    := 3.10
OLD       := 3.11

.PHONY: run test tests lint docs bench soak fuzz wheel sanitize clean toolchain examples
.SECONDARY:
.SECONDEXPANSION:

run: .venv/ready
	@[ -f examples/$(EXAMPLE)/app.py ] || { echo "There is no example $(EXAMPLE). These are here:" \
	    $(patsubst examples/%/app.py,%,$(wildcard examples/*/app.py)); exit 1; }
	.venv/bin/python examples/$(EXAMPLE)/app.py

lint: .venv/ready
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

# In pure Python: before CPython 3.12, the compiled methods do not look like coroutine functions.
docs: .venv/ready
	@FLASK_UWSGI_WEBSOCKET_PURE=1 .venv/bin/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env docs build/docs
	@echo "The documentation is in build/docs/index.html"

bench: .venvs/bench/ready
	.venvs/bench/bin/python -m benchmarks $(BENCH)

soak: .venv/ready
	.venv/bin/python -m benchmarks.soak $(SOAK)

fuzz: .venv/atheris
	cd tests && ../.venv/bin/python -m fuzz $(FUZZ)

.venv/atheris: .venv/ready
	@.venv/bin/pip install -qq atheris
	@touch $@

# The wheel is built from the source distribution, and must have all compiled modules.
wheel: .venv/ready
	@rm -rf dist
	.venv/bin/python -m build >build/wheel.log || { cat build/wheel.log; exit 1; }
	.venv/bin/twine check --strict dist/*
	@.venv/bin/python -m zipfile -l dist/*.whl | grep -c "\.so " | grep -x $(words $(wildcard flask_uwsgi_websocket/*/_*.pyx))

sanitize: .venv/ready
	.ci/sanitize .venv

clean:
	rm -rf .venv .venvs build dist *.egg-info flask_uwsgi_websocket/*/_*.c flask_uwsgi_websocket/*/*.so


# Tests, chosen by the markers that pyproject.toml explains. Tests without a server run on almost every interpreter, and on
# one of them with coverage. Live tests run on the oldest and the newest interpreter, or only on the newest, as heavy ones
# do. Some run with the pure-Python modules.

NEWEST := $(lastword $(SUPPORTED))

# Tests wait more than they compute, so several parts run at the same time.
test:
	@.ci/install $(PYTHON) $(NEWEST)
	@rm -rf build/tests && mkdir -p build/tests && touch build/tests/start
	@echo "Testing takes about 25 minutes on two cores: each part prints a line when it is done"
	@$(MAKE) --no-print-directory --jobs=6 --output-sync=line tests
	@.ci/sum

find-python = $(shell .ci/find-python $(1))

ifneq (,$(filter tests,$(MAKECMDGOALS)))
DEFAULT  := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
HERE     := $(sort $(DEFAULT) $(foreach v,$(SUPPORTED),$(if $(call find-python,$v),$v)))
LAST     := $(lastword $(HERE))
# If the newest version is not on this machine, it comes from Debian testing.
BORROWED := $(if $(filter-out $(HERE),$(NEWEST)),$(shell .ci/testing --check && echo $(NEWEST)))
MISSING  := $(filter-out $(HERE) $(BORROWED),$(SUPPORTED))
LIVE     := $(sort $(firstword $(HERE)) $(if $(BORROWED),,$(LAST)))

# Not 3.11, where a traced process may hang: when a thread with greenlets ends, greenlet's callback runs traced code. If
# another thread ends meanwhile, the interpreter tries for ever to run its callback within the first one.
COVERED  := $(firstword $(filter 3.12 3.13,$(HERE)))
# The interpreter whose live tests run with the pure-Python modules.
PURE     := $(filter-out $(DEFAULT) $(LAST),$(firstword $(HERE)))

ifneq (,$(MISSING))
$(if $(filter true,$(CI)),$(error No CPython $(MISSING) here, and CI must test it),\
  $(info No CPython $(MISSING) here: not tested))
endif
endif

# The oldest interpreter runs the tests without a server with the lowest supported versions. The one before the newest
# has enough to do with live tests.
LOWEST_IF_HERE := $(if $(filter $(LOWEST),$(HERE)),lowest)
SPARED         := $(filter-out $(DEFAULT),$(if $(LOWEST_IF_HERE),$(LOWEST)) $(if $(BORROWED),$(LAST)))

# The slowest parts come first.
tests: $(COVERED:%=test-%) lint $(LAST:%=live-once-%) $(BORROWED:%=borrowed-%) $(LAST:%=live-pages-%) \
    $(LIVE:%=live-others-%) \
    $(patsubst %,test-%,$(filter-out $(COVERED) $(SPARED),$(HERE)) $(LOWEST_IF_HERE)) \
    $(if $(BORROWED),,$(LAST:%=live-matrix-%) $(LAST:%=heavy-%)) $(if $(filter $(OLD),$(HERE)),original) examples docs

# The tests of one interpreter, in its virtual environment.
venv   = $(if $(filter $(DEFAULT),$1),.venv,.venvs/$1)
pytest = .ci/part $@ $(call venv,$*)/bin/python -m pytest -q --maxfail=20

test-%: $$(call venv,%)/ready
	@$(if $(filter $*,$(COVERED)),.ci/coverage $@ $(call venv,$*),$(pytest) -m "not live and not heavy and not original")

heavy-%: $$(call venv,%)/ready
	@$(pytest) -m heavy

# Version 0.6.1 itself, on an interpreter that Flask 2.1 supports.
original: $$(call venv,$(OLD))/ready .venvs/original/ready
	@.ci/part $@ $(call venv,$(OLD))/bin/python -m pytest -q tests/compat -m original

# Live tests mostly wait, so four parts of them run at the same time.
live-matrix-%: $$(call venv,%)/ready
	@$(pytest) -m "matrix and not once"

live-others-%: $$(call venv,%)/ready
	@$(pytest) -m "live and not matrix and not once"

live-once-%: $$(call venv,%)/ready
	@$(pytest) tests/live -m once

live-pages-%: $$(call venv,%)/ready
	@$(pytest) --ignore=tests/live -m "live and once"

examples: .venv/ready
	@cd $@/blueprints && ../../.ci/part $@ ../../.venv/bin/python -m pytest -q

# In Debian testing, the same goals run with PYTHON as the only interpreter.
borrowed-%:
	@.ci/testing $* $(MAKE) --no-print-directory PYTHON=python$* test-$* heavy-$* live-matrix-$* live-others-$*

# Both share the compiled modules of one interpreter, which must not change during the tests.
ifneq (,$(LOWEST_IF_HERE))
test-$(LOWEST) test-lowest: $$(call venv,$(LOWEST))/ready .venvs/lowest/ready
endif

# Pip makes one environment after the other. Those whose tests take longest are the first.
FIRST := $(filter-out $(LAST),$(COVERED))
ifneq (,$(FIRST))
$(call venv,$(LAST))/ready: | $(call venv,$(FIRST))/ready
$(foreach v,$(filter-out $(FIRST) $(LAST),$(HERE)) lowest,$(call venv,$v)/ready): | $(call venv,$(LAST))/ready
endif

live-others-$(PURE): export FLASK_UWSGI_WEBSOCKET_PURE = 1


# Virtual environments. The first step compiles uWSGI with greenlet's header file. The second step runs again when the
# package's metadata changes.

.venv/bin/uwsgi:         python = $(PYTHON)
.venvs/%/bin/uwsgi:      python = $(call find-python,$(notdir $*))
.venvs/lowest/bin/uwsgi: python = $(call find-python,$(LOWEST))
.venvs/bench/bin/uwsgi:  python = $(PYTHON)
.venvs/lowest/%:         export PIP_CONSTRAINT = tests/lowest.txt
.venvs/lowest/ready:     tests/lowest.txt
%/ready:                 extras = dev
.venv/ready:             extras = dev,docs

%/bin/uwsgi: | toolchain
	@echo "Making $*, with uWSGI compiled: about half a minute"
	@$(python) -m venv --clear $*
	@$*/bin/pip install -qq --upgrade pip
	@$*/bin/pip install -qq greenlet
	@UWSGI_EMBED_PLUGINS=asyncio,greenlet CFLAGS="-I$$(echo $(CURDIR)/$*/include/site/python3.*)" \
	    PIP_CACHE_DIR=$(CURDIR)/.venvs/cache \
	    $*/bin/pip install -qq --no-binary uwsgi "$$(grep -i '^ *uwsgi>' setup.cfg)"  # its own cache, with the plugins

EXTENSIONS := $(wildcard flask_uwsgi_websocket/*/_*.pyx flask_uwsgi_websocket/*/_*.pxd)

%/ready: %/bin/uwsgi setup.cfg setup.py pyproject.toml $(EXTENSIONS)
	@mkdir -p build && flock build/lock $*/bin/pip install -qq --editable ".[$(extras)]"  # pip writes into build
	@touch $@

# Version 0.6.1, for uWSGI of another environment.
.venvs/original/ready: tests/original.txt
	@$(call find-python,$(OLD)) -m venv --clear $(@D)
	@$(@D)/bin/pip install -qq --requirement $<
	@$(@D)/bin/pip install -qq --no-deps Flask-uWSGI-WebSocket==0.6.1
	@touch $@

# The servers to compare with, and 0.6.1 in its own directory.
.venvs/bench/ready: .venvs/bench/bin/uwsgi setup.cfg setup.py pyproject.toml \
    $(EXTENSIONS) benchmarks/requirements.txt
	@mkdir -p build && flock build/lock \
	    $(@D)/bin/pip install -qq --editable ".[asyncio,gevent]" --requirement benchmarks/requirements.txt
	@$(@D)/bin/pip install -qq --upgrade --no-deps --target $(@D)/legacy Flask-uWSGI-WebSocket==0.6.1
	@touch $@

toolchain:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed.")'
	@.ci/install $(PYTHON)
