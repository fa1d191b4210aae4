"""`python -m ingot` is `ingot`."""

from ingot.cli.main import main

main()
