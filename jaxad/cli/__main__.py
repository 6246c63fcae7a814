"""``python -m jaxad.cli``."""

from jaxad.cli import process

process()
