"""`python -m zpipe`."""

from zpipe.cli import main

main()
