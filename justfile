# The project's habits as commands: `just check`. `just` comes with the dev extra; `just --list` shows them all.

# Everything that needs no test: lint, format, types, who imports whom, spelling.
check:
    ruff check .
    ruff format --check .
    mypy
    lint-imports
    codespell

# All tests.
test *args:
    pytest {{args}}

# The tests of a minute, on two cores.
fast *args:
    pytest -n 2 -m "not slow and not process and not browser and not fault" {{args}}

# The documentation: spelling, links, paths, and the site (in site/; `mkdocs serve` shows it while you write).
docs:
    codespell README.md docs
    pytest tests/test_docs.py
    mkdocs build --strict -q

# The fast tests on the lowest versions that pyproject.toml admits, in a virtual environment of their own.
lowest:
    .ci/lowest
