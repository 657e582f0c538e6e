"""How large a map from a stranger may be. All limits are checked before what they limit is read or allocated."""

MAX_ROWS = 1 << 26
"""Flips of one map: 1.4 GiB of columns. A denser fault is better sent as its generator."""
MAX_FILE_BYTES = 2 << 30
MAX_FOOTER_BYTES = 16 << 20
"""Parquet metadata, the header included."""
MAX_HEADER_BYTES = 8 << 20
MAX_JSON_BYTES = 64 << 20
"""A map in the JSON view."""
MAX_JSON_ROWS = 1 << 20
MAX_JSON_PARTS = 1 << 16
"""Lists, objects and strings of a JSON map beside its rows: a Python object of each takes 20 times its bytes."""
MAX_ROW_GROUPS = 4096
MAX_GROUP_ROWS = 1 << 20
"""Rows of a row group, hence of what is decoded at once."""
MAX_PAGES = 1 << 12
"""Pages of a column in a row group."""
MAX_DRAWS = 1 << 33
"""Random numbers that an enumeration may take: some tens of seconds."""
MAX_EVENTS = 1 << 20
"""Read events of a trial, hence generated tokens."""
MAX_DEPTH = 32
"""Nesting of the header."""
