# Every target makes .venv by itself and installs what it needs from pyproject.toml and constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

# Modules stay compiled on disk: every process that a test starts imports them again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test ui test-ui test-versions docs fuzz lint bench gpu-check gpu-report bench-compare counts compile-report report check-figures clean

demo: .venv/.train
	$(BIN)/hnkernels demo

# The second run takes the CPU tensors through the Triton kernels, in Triton's interpreter. A file stays in one process,
# so that what its tests share is made once; tests/conftest.py puts the long ones first.
test: .venv/.dev
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder tests/triton tests/ops

# The page in a browser, on the embedded model and the folder hnkernels-home, which it makes.
ui: .venv/.ui
	$(BIN)/hnkernels ui

# The page in a real browser: Chromium is installed where it is missing, which takes an administrator. A test that has
# failed is run again, twice at most: on a busy machine a browser answers late.
test-ui: .venv/.test-ui .venv/.chromium
	$(BIN)/python -m pytest -o addopts="-q --strict-markers" -n 2 --dist loadfile --no-loadscope-reorder \
		--reruns 2 tests/ui

# The tests with the oldest and the newest Python, PyTorch, Triton and diffusers: an environment each, a few gigabytes.
# ENVIRONMENTS="oldest bare" chooses.
test-versions: .venv/.dev
	$(BIN)/python -m tests.versions $(ENVIRONMENTS)

# The pages of docs/ as a site in site/, which opens from the folder; a link or an anchor that leads nowhere is an error.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Spoilt files, texts and calls at every boundary: refused with a sentence, or right. CASES=100000 takes hours.
fuzz: .venv/.dev
	$(BIN)/python -m tests.fuzz --cases $(or $(CASES),1000)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Runs every benchmark on the CPU, checked before it is timed; the figures go to benchmarks/results/ and docs/.
bench: .venv/.dev
	$(BIN)/python -m benchmarks

# Is everything right on this GPU, and how fast? Eight minutes, with the Python at hand; nothing is downloaded.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check

# The benchmarks on a GPU, all of them.
gpu-report: .venv/.dev
	$(BIN)/python -m benchmarks --device cuda

# This version of the library against another: make bench-compare REF=<git revision>
bench-compare: .venv/.dev
	@test -n "$(REF)" || { echo "say what to compare with: make bench-compare REF=<git revision>" >&2; exit 2; }
	$(BIN)/python -m benchmarks.compare $(REF)

# What needs no device: launches, FLOPs, bytes and memory; from these the limits of four GPUs.
counts: .venv/.dev
	$(BIN)/python -m benchmarks.accounting
	$(BIN)/python -m benchmarks.limits
	$(BIN)/python -m benchmarks.report

compile-report: .venv/.dev
	$(BIN)/python -m benchmarks.compiled

# Pages, pictures and the tables of docs/, from the figures in benchmarks/results/.
report: .venv/.dev
	$(BIN)/python -m benchmarks.report

# Is what is committed of counts, models, compiled kernels, pages and pictures what the tree gives now? Three minutes.
check-figures: .venv/.dev
	$(BIN)/python -m benchmarks.report --check

clean:
	rm -rf .venv build dist site *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

# PyTorch's CPU build takes any Triton; its wheels with CUDA ask for the one that they were built with.
.venv/.train .venv/.dev .venv/.ui .venv/.test-ui .venv/.docs: .venv/.%: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]" || { \
		echo "once more, with the Triton that this PyTorch asks for instead of the one in constraints.txt" >&2; \
		grep -v "^triton==" constraints.txt > .venv/constraints.txt; \
		$(BIN)/python -m pip install --quiet --constraint .venv/constraints.txt --editable ".[$*]"; }
	touch $@

# The headless shell is Chromium without its windows; it takes a quarter less time. Where it cannot be had, Chromium.
.venv/.chromium: | .venv/bin/python
	command -v chromium-headless-shell >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq chromium-headless-shell; } \
		|| command -v chromium >/dev/null || apt-get install -y -qq chromium
	touch $@
