# make demo · make test · make lab · make docs
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test lab docs install dev check clean

install: $(VENV)/.installed
dev: $(VENV)/.dev

# uv installs what pip would, in a fraction of the time; wheels that lie on this machine it finds where pip is told to look
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
INSTALL := $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt uv

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/uv
	$(INSTALL) -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/uv
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.installed

demo: install
	$(BIN)/hatenb demo

# two processes of one thread each: more threads than cores only wait for one another
test: export OMP_NUM_THREADS = 1
test: dev
	$(BIN)/python .ci/notebooks.py 2
	$(BIN)/python -m pytest -n 2 --dist worksteal

# what CI checks beside the tests: modules are exported, notebooks clean, lines short, imports go down the floors
check: dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/nbdev-export
	@touch $(VENV)/.dev $(VENV)/.installed    # nbdev-export writes pyproject.toml again, as it was
	$(BIN)/nbdev-clean
	$(BIN)/python .ci/readme.py --check
	@git diff --exit-code --stat -- hatenb nbs || (echo 'nbdev-export or nbdev-clean changed these files: run `make check` and commit them' && exit 1)
	$(BIN)/ruff check nbs tests hatenb
	$(BIN)/lint-imports

lab: dev
	$(BIN)/jupyter lab nbs $(if $(filter 0,$(shell id -u)),--allow-root)

docs: dev
	@command -v quarto >/dev/null || { echo 'make docs needs Quarto on the PATH: https://quarto.org/docs/get-started/' && exit 1; }
	$(BIN)/nbdev-docs

clean:
	rm -rf _docs _proc build *.egg-info
