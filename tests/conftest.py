"""One Hypothesis profile for all tests: examples count, not seconds, for CI machines are slow and shared."""

from hypothesis import settings

settings.register_profile("kvspec", deadline=None)
settings.load_profile("kvspec")
