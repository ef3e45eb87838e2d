# The one front door: what can be done here, and how CI does it. `make` alone lists it.

CARGO ?= cargo
# Each feature is compiled alone: features add, they never need one another by accident.
FEATURES := store client redis metrics controller sim cli
DURATION ?=
DEMO_ARGS ?=
# What `make bench` measures: a file of benches/; all of them when empty.
AREA ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help tools demo test test-full bench lint fmt-check features docs ci clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s%s\n", $$1, $$2 }'

tools: ## Install what the build and the tests need, if it is missing (apt)
	@.ci/tools

demo: tools ## Run the demo, a minute; DURATION=20s for less, DEMO_ARGS="..." for more
	$(CARGO) build --release --locked
	"$${CARGO_TARGET_DIR:-target}/release/tidegate" demo $(if $(DURATION),--duration $(DURATION)) $(DEMO_ARGS)

# Most tests wait for processes most of the time: twice as many of them at once as there are cores.
test: tools ## Run the tests
	$(CARGO) test --locked -- --test-threads=$$((2 * $$(nproc) + 1))

test-full: test ## Run the tests, those too that need more: client libraries (pip), recordings (TIDEGATE_CORPUS), time (10,000 simulated worlds)
	@.ci/tools full
	$(CARGO) test --locked --test it -- --ignored --skip knee:: $(if $(TIDEGATE_CORPUS),,--skip corpus::)
	@echo "what is measured against time is measured beside nothing"
	$(CARGO) test --locked --test it -- --ignored --nocapture knee::
	@$(if $(TIDEGATE_CORPUS),,echo "corpus: TIDEGATE_CORPUS is not set, not read")

bench: tools ## Run the benchmarks, or one with AREA=streaming; a missed goal is an error
	$(CARGO) bench --locked --bench '$(AREA)*'

lint: tools ## Run clippy; every warning is an error
	$(CARGO) clippy --locked --all-targets -- -D warnings

fmt-check: ## Check the formatting
	$(CARGO) fmt --check

features: tools ## Run clippy on each feature alone
	$(CARGO) clippy --locked --lib --no-default-features -- -D warnings
	@set -eu; for feature in $(FEATURES); do \
		echo "$(CARGO) clippy --no-default-features --features $$feature"; \
		$(CARGO) clippy --locked --lib --no-default-features --features "$$feature" -- -D warnings; \
	done

docs: tools ## Build the API documentation; every warning is an error
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

ci: fmt-check lint features docs test ## Everything that must pass before a merge

clean: ## Remove what was built
	$(CARGO) clean
