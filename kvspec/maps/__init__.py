"""Fault maps: a fault as a file that one can store, cite, send and replay (docs/faultmap.md).

| file | owns |
|---|---|
| `model` | `FaultMap`, `Header` and their parts; header <-> plain data |
| `columns` | names, types and digest of the columns; the id of a map |
| `validate` | streaming validation in Rust; geometry comparison |
| `generate` | generative -> explicit, block by block |
| `trial` | trial of a plan -> map |
| `container`, `parquet`, `textual` | files, read as hostile |
| `runs` | run folder -> maps |
| `summary`, `compare` | who, what, where; what differs |
"""

from kvspec.maps.compare import MapDiff, diff_maps
from kvspec.maps.container import read_map, verify_map, write_map
from kvspec.maps.generate import explicit
from kvspec.maps.model import Columns, Coverage, FaultMap, Generator, Header, MapGeometry
from kvspec.maps.trial import explicit_map, from_trial, maps_of_trial
from kvspec.maps.validate import require_geometry

__all__ = [
    "Columns",
    "Coverage",
    "FaultMap",
    "Generator",
    "Header",
    "MapDiff",
    "MapGeometry",
    "diff_maps",
    "explicit",
    "explicit_map",
    "from_trial",
    "maps_of_trial",
    "read_map",
    "require_geometry",
    "verify_map",
    "write_map",
]
