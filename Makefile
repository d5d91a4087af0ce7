# Needs Python 3.11 or newer; everything else is installed into .venv here.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES_DATA ?= ../shared/data/packages

.PHONY: demo ads test check docs clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --editable ".[faiss,figures,redis,serve,tune]" --group demo --group test --group check
	touch $@

demo: .venv/installed ## real data, end to end: learn vectors, join, show, hit rate
	cd examples/similar_products && PATH="$(abspath $(BIN)):$$PATH" ./demo.sh

ads: .venv/installed ## similar-item ads on real purchases and coupons: the funnel, hit rates, a picture
	cd examples/similar_item_ads && PATH="$(abspath $(BIN)):$$PATH" ./demo.sh

test: .venv/installed ## all tests
	NEARCAST_PACKAGES_DATA="$(PACKAGES_DATA)" $(BIN)/python -m pytest -n 2

check: .venv/installed ## format, lint, types, import order
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check
	$(BIN)/python -m pytest -p no:cacheprovider tests/unit/test_layers.py

docs: .venv/installed ## write the generated pages
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv build dist examples/*/data examples/*/nearcast
