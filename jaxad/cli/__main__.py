"""``python -m jaxad.cli``."""

from jaxad.cli import main

main()
