"""`python -m saeval`."""

from saeval.cli import main

main()
