# Every command that the README names. PYTHON: 3.10, 3.11 or 3.12. PIP_ARGS: for example the index of CPU builds of torch.
PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
DATA ?=
EPOCHS ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SERVE_VENV ?= .venv-serve
RIVALS_VENV ?= .venv-rivals

.DEFAULT_GOAL := help
.PHONY: help docs demo test test-fast test-kernels test-slow soak fuzz knowledge-demo bench-knowledge helm-test k8s-static k8s-image k8s-e2e lint reference quality quality-large rivals ablations perf-analyzer load bench bench-full bench-gpu gpu-day serve-check lock lock-image sbom audit clean

$(INSTALLED): pyproject.toml constraints.txt builders/pyproject.toml client/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]' -e ./builders -e ./client
	touch $@

help:  ## Show this list.
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*##/ {printf "  %-16s%s\n", $$1, $$2}' \
		$(MAKEFILE_LIST)

##@ Try it

demo: $(INSTALLED)  ## From data to ten recommendations through a real Triton. DATA=folder for your own data.
	$(BIN)/genrec demo $(if $(DATA),--data $(DATA)) $(if $(EPOCHS),--epochs $(EPOCHS))

knowledge-demo: build/shop-bundle/manifest.json  ## Texts of 200 users, streamed by a real Triton, and what speculation gains.
	$(BIN)/genrec knowledge demo build/shop build/shop-bundle build/knowledge

bench-knowledge: $(INSTALLED)  ## Every way of drafting texts at every batch size, useless pools, long texts. After `make knowledge-demo`.
	$(BIN)/python -m perf.knowledge.compare compare build/knowledge build/shop build/knowledge-bench
	$(BIN)/python -m perf.knowledge.compare foreign build/knowledge build/shop
	test -e build/knowledge-long || $(BIN)/python -m perf.knowledge.long_texts build/knowledge build/shop build/knowledge-long
	$(BIN)/python -m perf.knowledge.compare alone build/knowledge-long build/shop

##@ Test

test: $(INSTALLED)  ## Every test but the slow ones, those without a server side by side. Fails without a Triton server; `pytest --without-triton` then leaves out what needs one.
	$(BIN)/pytest tests/unit tests/chart tests/fuzz -n auto --maxprocesses 4 --dist loadfile; units=$$?; \
		$(BIN)/pytest tests/integration && exit $$units

test-fast: $(INSTALLED)  ## In less than a minute: the unit tests that train, export and build nothing. No server.
	$(BIN)/pytest tests/unit -m 'not slow and not training' --ignore tests/unit/test_suite.py --hypothesis-profile few -n auto --maxprocesses 4

KERNELS ?= full
test-kernels: $(INSTALLED)  ## Unit tests with older and newer CPUs' kernels, one and two threads; KERNELS=short: a part. ONNX Runtime's have no switch.
	$(BIN)/python -m tests.kernels $(KERNELS)

test-slow: $(INSTALLED)  ## The long ones: 30,000 random requests through the server.
	$(BIN)/pytest -m slow

SOAK_MINUTES ?= 60
soak: build/knowledge/knowledge.json  ## An hour of mixed load on a catalogue that changes, while processes are killed; build/soak. SOAK_MINUTES.
	$(BIN)/python -m perf.reliability.soak build/shop-bundle build/shop build/knowledge build/soak --minutes $(SOAK_MINUTES)

FUZZ ?= full
FUZZ_S ?= 7200
fuzz: $(INSTALLED) build/knowledge/knowledge.json  ## Hostile input: in process, then a tenth as much to a server. FUZZ=short, or a number of inputs; FUZZ_S: seconds at most.
	$(BIN)/python -W ignore -m tests.fuzz --inputs $(FUZZ) --seconds $(FUZZ_S) --base $$(date +%s)
	$(BIN)/python -W ignore -m tests.fuzz --inputs $(FUZZ) --seconds $(FUZZ_S) --base $$(date +%s) --server build/shop-bundle \
		--knowledge build/knowledge
	$(BIN)/pytest --hypothesis-profile random -m 'not slow and not training' tests/unit

helm-test: $(INSTALLED)  ## The chart: lint, render every profile, schemas of two Kubernetes versions, alert rules. Part of `make test`.
	$(BIN)/pytest tests/chart

k8s-static: $(INSTALLED)  ## A static checker's Kubernetes rules on every profile; exceptions and their reasons: k8s/checkov.yaml.
	test -x .venv-checkov/bin/checkov || ($(PYTHON) -m venv .venv-checkov && .venv-checkov/bin/pip install -q --disable-pip-version-check checkov==3.3.30)
	$(BIN)/python -m k8s.rendering build/k8s
	.venv-checkov/bin/checkov --config-file k8s/checkov.yaml

##@ Run it on Kubernetes

IMAGE ?= localhost/genrec:dev
IMAGE_ARGS ?=
BUNDLE ?= build/shop-bundle
E2E_ARGS ?=

k8s-image:  ## The CPU image, by podman. IMAGE_ARGS: for podman build. DEBOOTSTRAP=1 where docker.io cannot be reached.
	k8s/images/build.sh $(IMAGE) $(IMAGE_ARGS)

k8s-e2e: $(INSTALLED) $(BUNDLE)/manifest.json  ## Install, test, roll over, change the bundle, roll back: on KUBECONFIG's cluster, or emulated.
	$(BIN)/python -m k8s.e2e.run $(BUNDLE) --image $(IMAGE) $(E2E_ARGS)

##@ Check style and pages

lint: $(INSTALLED)  ## Style, types, and who imports whom.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd client && ../$(BIN)/mypy
	$(BIN)/lint-imports

# NO_MKDOCS_2_WARNING: the theme's advice about a release that is not used here.
docs: $(INSTALLED)  ## The pages and the API reference as a site, in build/site. A broken link is an error.
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

##@ Measure quality

# Quality on a dataset with semantic IDs: DATA=folder. One seed takes an hour and a half on 2 cores, most of it training.
SEED ?= 0
QUALITY := build/quality
TRAINED := $(QUALITY)/draft_head-s$(SEED) $(QUALITY)/beam_search-s$(SEED)

# Always run: a bundle that is there is kept if it was built of the same, and the command says what differs otherwise.
$(QUALITY)/%-s$(SEED)/manifest.json: $(INSTALLED) FORCE
	$(BIN)/genrec build $(DATA) $(@D) --keep --decoder $* --validation-users 4000 $(EVALUATED) --seed $(SEED)

FORCE:

# `quality` ranks all users; at the bundle's 128 beams that takes beam search minutes, and nobody reads it.
$(QUALITY)/beam_search-%: EVALUATED := --evaluate-users 2000

# The recipe that recommends best on what was measured: semantic IDs of behaviour, and votes.
REFERENCE := $(QUALITY)/reference-s$(SEED)
reference: $(INSTALLED)  ## The reference bundle of docs/quality.md, and its copy with votes, evaluated on all users. DATA=folder.
	$(BIN)/genrec build $(DATA) $(REFERENCE) --keep --heads 2 --sid-source behaviour --levels 256,256,256,256 --distinct-sids \
		--validation-users 4000 --seed $(SEED)
	$(BIN)/genrec votes $(REFERENCE) $(DATA) $(REFERENCE)-votes

quality: $(addsuffix /manifest.json,$(TRAINED))  ## NEZHA against beam search, one seed; beams 20 and 50, all test users. DATA=folder.
	$(BIN)/genrec compare $(DATA) --model nezha=$(word 1,$(TRAINED)) --model beam-search=$(word 2,$(TRAINED)) \
		--beam-widths 20,50 --masks on --out $(QUALITY)/results-s$(SEED) \
		--reference TIGER=0.106,0.080 --reference LETTER-TIGER=0.112,0.083

# RecTools' upper bound on attrs fits nothing else that is pinned.
$(RIVALS_VENV)/.installed: pyproject.toml constraints.txt builders/pyproject.toml client/pyproject.toml
	$(PYTHON) -m venv $(RIVALS_VENV)
	grep -v '^attrs==' constraints.txt > $(RIVALS_VENV)/constraints.txt
	$(RIVALS_VENV)/bin/pip install -q --disable-pip-version-check $(PIP_ARGS) -c $(RIVALS_VENV)/constraints.txt \
		-e '.[rivals]' -e ./builders -e ./client
	touch $@

rivals: $(RIVALS_VENV)/.installed  ## Popularity, item-kNN, item vectors and SASRec on the same users: build/quality/rivals. DATA=folder, RIVALS_ARGS.
	$(RIVALS_VENV)/bin/python -m perf.quality.rivals $(DATA) $(QUALITY)/rivals --seed $(SEED) $(RIVALS_ARGS)

ablations: $(INSTALLED)  ## What each part of NEZHA is worth. DATA=folder.
	$(BIN)/python -m perf.quality.ablations $(DATA) build/ablations

# Bundles that a call did not finish go on in the next one: `genrec build` keeps its training every 30 s.
CALL_S ?= 570
SEEDS ?= 0 1 2
LARGE ?= --hidden-size 384 --heads 6 --layers 6 --epochs 30 --patience 4

quality-large: $(INSTALLED)  ## A larger model, three seeds, all users, in calls of ten minutes: again until it says that all is there. DATA=folder.
	@timeout --signal=INT $(CALL_S) sh -c 'for seed in $(SEEDS); do $(BIN)/genrec build $(DATA) build/quality-large/s$$seed \
		--keep --validation-users 4000 $(LARGE) --seed $$seed || exit; done'; status=$$?; \
	if [ $$status -eq 124 ]; then echo "$(CALL_S) s are over, and what was trained is kept: call it again"; exit 3; fi; \
	[ $$status -ne 0 ] || echo "all is there: build/quality-large"; exit $$status

##@ Measure speed

# perf_analyzer, Triton's load generator: its wheel holds the binary; the system has to have libb64 (Debian: libb64-0d).
ANALYZER := .perf-analyzer/bin/perf_analyzer
BENCH := build/bench

perf-analyzer: $(ANALYZER)  ## Install perf_analyzer into .perf-analyzer, for load tests and benchmarks.

$(ANALYZER): $(INSTALLED)
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) --no-deps --upgrade --target .perf-analyzer \
		tritonclient==2.50.0 nvidia-cuda-runtime-cu12==12.9.79
	touch $@

load: $(ANALYZER) build/shop-bundle/manifest.json  ## perf_analyzer and Locust against the demo's server; the report is in build/load/shop.
	$(BIN)/python -m perf.speed.load build/shop-bundle build/load/shop --data build/shop $(LOAD_ARGS)

bench: $(ANALYZER)  ## NEZHA against beam search in eight cells, overhead, catalogue size; the report is in build/bench/report.
	$(BIN)/python -m perf.speed.bench $(BENCH) $(BENCH_ARGS)
	$(BIN)/python -m perf.speed.overhead $(BENCH)
	$(BIN)/python -m perf.speed.catalog_size $(BENCH)
	$(BIN)/python -m perf.speed.bench_report $(BENCH) $(BENCH)/report

bench-full: $(ANALYZER)  ## The whole grid of cells, with a 0.6 B backbone. Hours; what is measured already is kept.
	$(BIN)/python -m perf.speed.bench build/bench-full --full
	$(BIN)/python -m perf.speed.bench_report build/bench-full build/bench-full/report

bench-gpu: $(INSTALLED) build/shop-bundle/manifest.json  ## On a GPU: PyTorch in bf16 with CUDA graphs; the report is build/bench-gpu/report.md.
	$(BIN)/python -m perf.gpu.bench build/bench-gpu $(GPU_ARGS)
	$(BIN)/python -m perf.gpu.precision build/shop-bundle build/shop build/bench-gpu

gpu-day: $(INSTALLED)  ## On a bare machine with a GPU: all that ten minutes can tell; again: goes on. DRY=1: a trial on the CPU. build/gpu-day.
	$(BIN)/python -m perf.gpu.day build/gpu-day$(if $(DRY),-dry --dry) $(GPU_ARGS)

##@ Installations

serve-check: build/shop-bundle/manifest.json  ## Install what serving needs, without torch, and answer from there.
	$(PYTHON) -m venv --clear $(SERVE_VENV)
	$(SERVE_VENV)/bin/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt '.[serve,triton]' ./client
	$(SERVE_VENV)/bin/python tests/serve_check.py build/shop-bundle

build/shop-bundle/manifest.json:
	$(MAKE) demo

build/knowledge/knowledge.json: build/shop-bundle/manifest.json
	$(BIN)/genrec knowledge build build/shop build/knowledge

lock:  ## Resolve constraints.txt again, for the oldest supported Python. Needs uv.
	mkdir -p build && printf '%s\n' '-e .[dev,rivals]' '-e ./builders' '-e ./client' > build/requirements.in
	echo 'attrs>=22.2' > build/overrides.in  # against RecTools' upper bound, see `rivals`
	uv pip compile build/requirements.in --overrides build/overrides.in --python $(PYTHON) --no-header --no-annotate $(UV_ARGS) -q --upgrade -o constraints.txt
	sed -i -E '/^(-e |(torch|triton|nvidia-(cu|nc|nv)[a-z0-9-]*|cuda-[a-z]+)==)/d' constraints.txt
	$(MAKE) lock-image

IMAGE_LOCK := k8s/images/cpu/requirements.txt
IMAGE_EXTRAS := serve query triton catalog openvino signing
IMAGE_PYTHON ?= python3.11

# The pins are those of constraints.txt; the hashes have to be those of PyPI, so no other index is asked.
lock-image:  ## Write the CPU image's requirements with hashes, of what constraints.txt pins. Needs uv and Python 3.11.
	mkdir -p build
	$(IMAGE_PYTHON) k8s/images/requirements.py $(IMAGE_EXTRAS) < pyproject.toml > build/image.in
	$(IMAGE_PYTHON) k8s/images/requirements.py < client/pyproject.toml >> build/image.in
	uv pip compile build/image.in -c constraints.txt --default-index https://pypi.org/simple --generate-hashes -q \
		--python-version 3.11 --python-platform x86_64-manylinux_2_36 --no-header --no-annotate -o $(IMAGE_LOCK)

build/image/.installed: $(IMAGE_LOCK) k8s/images/cpu/unused.txt
	$(IMAGE_PYTHON) -m venv --clear build/image
	build/image/bin/pip install -q --disable-pip-version-check $(PIP_ARGS) --require-hashes -r $(IMAGE_LOCK)
	build/image/bin/pip uninstall -q -y -r k8s/images/cpu/unused.txt
	touch $@

build/supply/bin/pip-audit:
	$(PYTHON) -m venv build/supply
	build/supply/bin/pip install -q --disable-pip-version-check $(PIP_ARGS) cyclonedx-bom==7.5.0 pip-licenses==5.5.5 pip-audit==2.10.1

sbom: build/image/.installed build/supply/bin/pip-audit  ## The CPU image's Python packages: build/sbom.cdx.json (CycloneDX), build/licences.md.
	build/supply/bin/cyclonedx-py environment --output-reproducible --of JSON -o build/sbom.cdx.json build/image/bin/python
	build/supply/bin/pip-licenses --python=build/image/bin/python --from=mixed --format=markdown --output-file=build/licences.md

audit: build/supply/bin/pip-audit  ## Known vulnerabilities of the CPU image's packages. Needs the network: PyPI's database, or AUDIT_ARGS="-s osv".
	build/supply/bin/pip-audit --strict $(AUDIT_ARGS) --disable-pip --no-deps -r $(IMAGE_LOCK)

clean:  ## Remove data, bundles and environments that the other targets made.
	rm -rf build $(VENV) $(SERVE_VENV) $(RIVALS_VENV) .venv-checkov .perf-analyzer
