"""The search for a state by bisection over the rate: campaigns of one engine, one after the other.

A spec spans the search: its faults are tried at all their rates first, then between the two neighbours where retrieval
is lost. All campaigns share seed, prompts and items, and faults that differ in `where` only share their draws at equal
rates. What is found becomes a spec of its own, the profile, and is measured once more with another seed.
"""

from kvspec.search.model import Point, Series
from kvspec.search.run import Found, search

__all__ = ["Found", "Point", "Series", "search"]
