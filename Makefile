# rose_d2: every target makes the environment it needs. `make help` lists the targets.

# Optional: the interpreter (PYTHON=python3.12), where detectron2 comes from (DETECTRON2=git or
# wheel; empty keeps what is there), more of the package's extras (EXTRAS=app,bulk,docs), and more
# arguments for the command of a target (ARGS='...').
PYTHON ?=
DETECTRON2 ?=
EXTRAS ?=
ARGS ?=
VENV_PYTHON = .venv/bin/python
WANTED = $(EXTRAS)
TINY = --config-file configs/rose_tiny.yaml
TINY_WEIGHTS = MODEL.WEIGHTS checkpoints/rose_tiny/model.safetensors

# detectron2 still uses torch.jit.script: nothing that a user can change.
export PYTHONWARNINGS ?= ignore::FutureWarning:torch.jit._script,ignore::DeprecationWarning:torch.jit._script

.PHONY: help setup demo app space docs test lint format train-tiny eval-tiny

help:
	@echo "make demo        segment and name eight clip-art images; pictures in output/demo"
	@echo "make app         the web page: segment, click and talk in a browser"
	@echo "make space       the web page as a folder for a Hugging Face Space, in output/space"
	@echo "make docs        the documentation as a site, in output/site"
	@echo "make test        run the tests (ARGS='-k name' for some of them)"
	@echo "make fuzz        read 5000 damaged files of every kind (ARGS='-k annotations' for one)"
	@echo "make setup       only the environment: .venv with pinned dependencies and detectron2"
	@echo "make lint        ruff and mypy, as CI runs them"
	@echo "make format      let ruff format and fix what it can"
	@echo "make train-tiny  train configs/rose_tiny.yaml on the clip-art benchmark"
	@echo "make eval-tiny   benchmark the shipped tiny checkpoint on the clip-art benchmark"
	@echo "Options: PYTHON=python3.12 (3.10 to 3.13), DETECTRON2=git|wheel, EXTRAS=app,bulk,docs, ARGS='...'"

setup:
	@found=; \
	for python in $${PYTHON:-.venv/bin/python python3 python3.13 python3.12 python3.11 python3.10}; do \
	  version=$$("$$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue; \
	  case "$$version" in \
	    3.10.*|3.11.*|3.12.*|3.13.*) \
	      if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	        exec "$$python" tools/setup_env.py $${PYTHON:+--this-python} --detectron2="$$DETECTRON2" \
	          --extras="$(WANTED)"; \
	      fi; \
	      found="$$found, $$python is $$version without venv and pip" ;; \
	    *) found="$$found, $$python is $$version" ;; \
	  esac; \
	done; \
	found=$${found#, }; \
	echo "set-up: no Python 3.10 to 3.13 with venv and pip here ($${found:-$${PYTHON:-python3} does not run}): install one" \
	  "(Debian, Ubuntu: sudo apt install python3 python3-venv) or name it, e.g. make setup PYTHON=/path/to/python3.12" >&2; \
	exit 1

demo: setup
	$(VENV_PYTHON) datasets/prepare_clipart.py --images-only output/demo/images
	$(VENV_PYTHON) demo/demo.py $(TINY) --input output/demo/images --output output/demo \
	  --overwrite $(ARGS) --opts $(TINY_WEIGHTS)
	@echo "The result is in output/demo: contact_sheet.jpg, overlays/ and predictions.json"

app: WANTED = app,$(EXTRAS)
app: setup
	$(VENV_PYTHON) demo/app.py $(ARGS)

space: setup
	rm -rf build output/space
	$(VENV_PYTHON) -m pip wheel --quiet --no-deps --wheel-dir output/space .
	cp -r demo/space/. demo/examples output/space
	cp demo/app.py output/space/rose_page.py
	$(VENV_PYTHON) -c "from importlib.metadata import requires; print(*(line.split(';')[0] \
	  for line in requires('rose_d2') if ';' not in line or 'extra == \"app\"' in line), sep='\n')" \
	  > output/space/requirements.txt
	@echo "Push output/space to a Space: https://huggingface.co/docs/hub/spaces-overview"

docs: WANTED = docs,$(EXTRAS)
docs: setup
	NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --strict --quiet
	@echo "The site is in output/site: open index.html, or $(VENV_PYTHON) -m mkdocs serve"

train-tiny: setup
	$(VENV_PYTHON) datasets/prepare_clipart.py
	$(VENV_PYTHON) train_net.py $(TINY) $(ARGS)

eval-tiny: setup
	$(VENV_PYTHON) datasets/prepare_clipart.py
	$(VENV_PYTHON) train_net.py $(TINY) --eval-only $(TINY_WEIGHTS) OUTPUT_DIR output/eval_tiny $(ARGS)
	@echo "The numbers are above and, as JSON, in output/eval_tiny"

# Whole files go to the workers, for the tests of a file share what is slow to make; one thread each.
test: setup
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n logical --maxprocesses 4 --dist loadfile \
	  --no-loadscope-reorder $(ARGS)

fuzz: setup
	OMP_NUM_THREADS=1 FUZZ_INPUTS=$${FUZZ_INPUTS:-5000} $(VENV_PYTHON) -m pytest -p no:xdist -s tests/fuzz $(ARGS)

lint: setup
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

format: setup
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .
