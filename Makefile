# Two commands do everything on a fresh machine with Python 3.11 or 3.12: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
EXPERIMENT ?= cifar10_tri2
DEMO ?= outputs/demo
BIN := $(VENV)/bin

.PHONY: demo test run check report soak gpu-check lock clean

demo: $(VENV)/installed  ## train two schedules on the embedded sample, draw their curves
	$(BIN)/python scripts/run.py -m +experiment=cifar10_fixed_25k,cifar10_tri2 data=cifar10_sample compress=50 \
	  eval_every=20 logger=none results_dir="'$(DEMO)/results'" runs_dir="'$(DEMO)/runs'"
	$(BIN)/python scripts/report.py results_dir="'$(DEMO)/results'" figures_dir="'$(DEMO)'" figures=[] title="'Demo: 2,000 images, schedules compressed 50 times'"

test: $(VENV)/installed check  ## what CI runs
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

run: $(VENV)/installed  ## the main job on the full data set: make run EXPERIMENT=cifar10_fixed WITH="seed=1 trainer=gpu"
	$(BIN)/python scripts/run.py +experiment=$(EXPERIMENT) $(WITH)

report: $(VENV)/installed  ## tables, verdicts, figures, page and README from results/
	$(BIN)/python scripts/report.py

soak: $(VENV)/installed  ## twenty processes on one study, a hundred of them killed: a few minutes
	$(BIN)/python tests/soak.py --faults 100

gpu-check: $(VENV)/installed  ## on a machine with a GPU: is the fast engine right, and how fast
	$(BIN)/python benchmarks/gpu_check.py $(WITH)

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12) and "Python 3.11 or 3.12 is needed, this is " + sys.version + "; name another by make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

lock: $(VENV)/installed  ## write down what is installed; torch itself pins its CUDA wheels
	$(BIN)/python -m pip list --format=freeze --exclude-editable --disable-pip-version-check \
	  | grep -viE '^(nvidia-|cuda-|triton|pip=|setuptools=)' > requirements.lock

clean:
	rm -rf $(VENV) outputs/demo
