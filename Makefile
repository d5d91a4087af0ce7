# Needs Python 3.11 or newer; everything else is installed into .venv here.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo ads visual test test-slow test-cluster test-image test-all sanitize fuzz check docs docs-site airflow operations peers clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --editable ".[cloud,delta,duckdb,dynamodb,faiss,figures,iceberg,lance,onnx,otel,redis,serve,tune]" --group demo --group visual \
	  --group test --group check
	touch $@

demo: .venv/installed ## real data, end to end: learn vectors, join, show, hit rate
	cd examples/similar_products && PATH="$(abspath $(BIN)):$$PATH" ./demo.sh

ads: .venv/installed ## similar-item ads on real purchases and coupons: the funnel, hit rates, a picture
	cd examples/similar_item_ads && PATH="$(abspath $(BIN)):$$PATH" ./demo.sh

visual: .venv/installed ## pictures of clothes: candidates for pins, phrases and home feeds; needs dataset-fashion-mnist
	cd examples/visual_candidates && PATH="$(abspath $(BIN)):$$PATH" ./demo.sh

# Tests wait for servers, processes and disks half of their time: four workers keep two cores busy.
WORKERS ?= 4

test: .venv/installed ## the tests of every commit; the last lines list skipped tests with the reason
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: .venv/installed ## the slow tests alone, and every property on all its examples
	NEARCAST_EXAMPLES=all $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "(slow or hypothesis) and not cluster"

test-all: test test-slow ## all tests: nightly, and before a release

# Spark, Spark Connect and Ray, for test-cluster alone: half a gigabyte.
.venv/cluster: .venv/installed
	$(BIN)/pip install --quiet --no-compile --group cluster
	touch $@

CLUSTER_TESTS ?= cluster

test-cluster: .venv/cluster ## runs on a real Spark and a real Ray cluster on this machine; needs Java (openjdk-17-jre-headless)
	$(BIN)/python -m pytest -m "$(CLUSTER_TESTS)" tests/cluster

# A base image from Debian's packages, and the image from it: no registry is needed. Some minutes, as root.
test-image: export STORAGE_DRIVER = vfs
test-image: export BUILDAH_ISOLATION = chroot
test-image: .venv/installed ## builds the image with buildah and runs it; needs buildah and mmdebstrap
	deploy/docker/debian_base.sh localhost/nearcast-base
	NEARCAST_IMAGE_BASE=localhost/nearcast-base $(BIN)/python -m pytest -m slow tests/operations/test_image.py

# A second build of the kernels, with ASan and UBSan. Python is built without them: the sanitizers are preloaded, and every
# array comes from their allocator, with guard bytes around it.
SANITIZED := build/sanitized
FUZZ_SECONDS ?= 600
SANITIZE = NEARCAST_SANITIZED="$(abspath $(SANITIZED))" PYTHONMALLOC=malloc \
  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 $(BIN)/python

$(SANITIZED)/built: .venv/installed CMakeLists.txt $(wildcard src/nearcast/kernels/*.cpp src/nearcast/kernels/*.h)
	$(BIN)/pip install --quiet --group sanitize
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(SANITIZED) -G Ninja -DNEARCAST_SANITIZE=ON \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPython_EXECUTABLE="$(abspath $(BIN)/python)" \
	  -Dnanobind_DIR="$$($(BIN)/python -m nanobind --cmake_dir)" >/dev/null
	PATH="$(abspath $(BIN)):$$PATH" cmake --build $(SANITIZED)
	touch $@

sanitize: $(SANITIZED)/built ## the kernels' tests, and a short fuzz of every entry point, under ASan and UBSan
	$(SANITIZE) -m pytest -p tests.kernels.sanitized -p no:cacheprovider tests/kernels -m "not slow"
	$(SANITIZE) -m tests.kernels.fuzz --seconds 2

fuzz: $(SANITIZED)/built ## every entry point of the kernels, ten minutes each (FUZZ_SECONDS), under ASan and UBSan
	$(SANITIZE) -m tests.kernels.fuzz --seconds $(FUZZ_SECONDS) --seed $$(date +%s)

check: .venv/installed ## format, lint, types, generated pages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

docs: .venv/installed ## write the generated pages
	$(BIN)/python docs/generate.py

# The generator of the site, for docs/build_site.py.
.docs-site/installed:
	$(PYTHON) -m venv .docs-site
	.docs-site/bin/pip install --quiet --upgrade "pip>=25.1"
	.docs-site/bin/pip install --quiet --no-compile --group site
	touch $@

docs-site: .docs-site/installed ## the documentation as a site with search: build/documentation/site
	$(PYTHON) docs/build_site.py

# Airflow pins about a hundred dependencies, so it has a separate environment.
.airflow/installed:
	$(PYTHON) -m venv .airflow
	.airflow/bin/pip install --quiet --upgrade "pip>=25.1"
	.airflow/bin/pip install --quiet --no-compile --group airflow
	touch $@

airflow: .airflow/installed ## the real Airflow, for the test that parses examples/scheduling

# Dagster and a lint of Dockerfiles, for the tests of deploy/.
.operations/installed:
	$(PYTHON) -m venv .operations
	.operations/bin/pip install --quiet --upgrade "pip>=25.1"
	.operations/bin/pip install --quiet --no-compile --group operations
	touch $@

operations: .operations/installed ## what the tests of deploy/ run: Dagster and hadolint; prometheus and systemd come from the system

peers: .venv/installed ## environments of the libraries that benchmarks/join.py compares with; torch is large
	$(BIN)/pip install --quiet --group peers
	$(BIN)/python benchmarks/join.py --prepare

clean:
	rm -rf .venv .airflow .docs-site .operations benchmarks/.environments build dist examples/*/data examples/*/nearcast
