# The commands of README and CI, and nothing else. `just` lists them.
set windows-shell := ["powershell.exe", "-NoLogo", "-Command"]

default:
    @just --list

# Everything CI asks: style, types, architecture, tests.
check: lint types floors test

# Install and run the tests: README's second command.
test:
    pip install -e ".[test]" && pytest -m "not slow and not nightly"

# All tests, also those that take minutes.
test-all:
    pip install -e ".[test]" && pytest -m "not nightly"

# Install and read the demo slide: README's first command.
demo:
    pip install . && slideway demo

lint:
    ruff check .
    ruff format --check src tests

types:
    mypy

# Who may import whom (docs/architecture.md).
floors:
    lint-imports

# Speed of reading one slide against the floor; add --peer NAME=PYTHON for each installed peer.
bench-speed SLIDE *ARGS:
    python bench/peers/compare.py --slide {{SLIDE}} {{ARGS}}

# Figures of docs/quality.md and docs/resolution.md, from a folder of real slides and tiles.
bench-tissue DATA:
    python bench/tissue/measure.py {{DATA}}

# Figures of docs/heads.md.
bench-heads DATA:
    python bench/heads/measure.py {{DATA}}

# Train the heads that ship anew, judge them on unseen cases, and print the whole table of docs/findings.md.
bench-starters DATA *ARGS:
    python training/heads/train_starters.py {{DATA}} {{ARGS}}

# Calibration, conformal sets, drift and strange slides: docs/certainty.md.
bench-certainty DATA:
    python bench/heads/certainty.py --atlas {{DATA}}/atlas

# Planted lesions by head and codec, foreign organs, torchmil on the same folds, time: docs/hard.md.
bench-hard DATA:
    python bench/heads/lesions.py {{DATA}}
    python bench/heads/strange.py {{DATA}}
    python bench/heads/torchmil_folds.py {{DATA}}
    python bench/heads/inference.py

# Bytes and fidelity of feature codecs: docs/codecs.md.
bench-codecs DATA:
    python bench/bundles/codecs.py {{DATA}}

# Bytes of bundles against baselines measured on the same slides: docs/bytes.md.
bench-bytes DATA *ARGS:
    python bench/bundles/bytes.py {{DATA}} {{ARGS}}

# Proof of parity: bytes against the answer, codec by codec and prefix by prefix: docs/parity.md.
bench-parity DATA *ARGS:
    python bench/parity/measure.py {{DATA}} {{ARGS}}

# What writing a bundle adds to the reading of a slide; takes output folders of `slideway read`.
bench-bundle-cost *READINGS:
    python bench/bundles/write_cost.py {{READINGS}}

# Whether reading 10,000 bundles leaks memory or open files.
bench-bundle-leaks *BUNDLES:
    python bench/bundles/leaks.py {{BUNDLES}}

# How much one cloud carries, beside a plain S3 server; and 2,000 nodes that come back at once: docs/load.md (PostgreSQL).
bench-load *ARGS:
    python bench/cloud/load.py --roles api,api {{ARGS}}

bench-herd *ARGS:
    python bench/cloud/herd.py {{ARGS}}

# Kill every process of nodes and cloud, thousands of times: docs/reliability.md.
bench-kill *ARGS:
    python bench/reliability/kill.py {{ARGS}}

# Memory, processor time and cold start of a node with nothing to do: docs/edge.md.
bench-idle:
    python bench/edge/idle.py

# README's "Two machines", line by line and timed, between two network namespaces (Linux, root): README.
bench-two-machines SLIDE:
    python bench/two_machines.py {{SLIDE}}

# How much of the picture, and of whose slide it is, comes back from features: docs/privacy.md (torch; half an hour).
bench-privacy DATA *ARGS:
    python bench/privacy/measure.py {{DATA}} {{ARGS}}

# The evidence table of docs/encoder.md, from a folder with atlas/ and labelled/; add --onnx NAME=FILE for baselines.
bench-encoder DATA *ARGS:
    python bench/encoders/evaluate.py {{DATA}} --encoder slideway-small {{ARGS}}

# Peak memory on a generated 100,000 x 100,000 slide.
bench-memory:
    python bench/memory/measure.py

# Coverage-guided fuzzing of the header parsers (needs atheris).
fuzz SECONDS="600":
    python bench/fuzz/fuzz_headers.py --seconds {{SECONDS}}
