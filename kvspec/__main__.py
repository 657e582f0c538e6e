"""`python -m kvspec`: the same as the `kvspec` command."""

from kvspec.cli import entry

entry()
