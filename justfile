# The commands people use, in the environment that is active. `just` lists them.
set positional-arguments

_list:
    @just --list

# Tests that take no more than a few seconds each; `just test -k name` for some of them
test *options:
    pytest -m 'not slow' "$@"

# The same with other inputs in each run; CI draws the same ones each time
fuzz *options:
    HYPOTHESIS_PROFILE=default pytest -m 'not slow' "$@"

# Everything CI does, in a fresh environment
ci:
    bash .ci/run

# Format, and all static checks
lint:
    ruff check --fix .
    ruff format .
    mypy
    lint-imports

# Write again what is made from the code: pages of the documentation, the list of public names
generate:
    python tests/helpers/generated_docs.py
    python tests/plugin/test_public_api.py

# Build the documentation and serve it
docs:
    mkdocs serve --strict

# Lines of the core that the quick tests run
coverage:
    pytest -m 'not slow' -k 'not answer_at_once' --cov --cov-report=term-missing:skip-covered
