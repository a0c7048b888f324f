# `make demo` fine-tunes the shipped base to Greek letters, `make demo-text` the one that reads prompts to a
# drawing; CI calls `make test`, `make slow`, `make laws` and `make check`.
# `make study` compares two methods on two sets, to a report, in five minutes.
# `make bench` measures speed beside peers and takes twenty minutes; `python -m bench.speed --only NAME` one table.
# `make bench-gpu` measures steps and samplings of DiT-XL/2 on a CUDA device.
# `make fuzz` takes twenty minutes and `make kills` about as long: more of what the tests do.
# `make docs` makes the site of the documentation, dist/site.
# Each makes .venv by itself and needs nothing but Python 3.11 or later and make.
# Tests run in two processes of one thread each: each takes half, then what the other has left.
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: demo demo-text study test slow laws check bench bench-gpu docs fuzz kills clean

demo: .venv/installed
	.venv/bin/smidgen demo --output runs/demo

demo-text: .venv/installed
	.venv/bin/smidgen demo --text --output runs/demo-text

study: .venv/installed
	.venv/bin/smidgen study run recipes/study-small.toml
	.venv/bin/smidgen study report recipes/study-small.toml

test: .venv/installed-dev
	$(PYTEST)

slow: .venv/installed-dev
	$(PYTEST) -m slow --ignore tests/laws

laws: .venv/installed-dev
	$(PYTEST) tests/laws --all-laws -m ""

check: .venv/installed-dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright
	.venv/bin/python -m pytest tests/test_recipes.py

bench: .venv/installed-dev
	.venv/bin/python -m bench.speed

bench-gpu: .venv/installed-dev
	.venv/bin/python -m bench.speed --gpu

docs: .venv/installed-dev
	.venv/bin/mkdocs build --strict

fuzz: .venv/installed-dev
	.venv/bin/python -m tests.fuzz

kills: .venv/installed-dev
	.venv/bin/python -m tests.kills

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name one with: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv dist
