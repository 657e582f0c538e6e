"""The search for a state by bisection over the rate: campaigns of one engine, one after the other.

A spec spans the search: its faults are tried at all their rates first, then at rates between those where reasoning
falls to half and those where retrieval is lost. All campaigns share seed, prompts and items, and faults that differ in
`where` only share their draws at equal rates. The closest points become a spec of its own, the profile, and are
measured once more with another seed. `read_search` reads it all again without an engine.
"""

from kvspec.search.found import Found, read_search
from kvspec.search.model import Point, Series
from kvspec.search.window import Window

__all__ = ["Found", "Point", "Series", "Window", "read_search"]
