"""One question per script; see README.md."""
