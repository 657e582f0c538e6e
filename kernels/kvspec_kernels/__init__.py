"""Triton kernels of kvspec: faults in the KV cache of a GPU, sampled bit for bit as the Rust core does.

Start at `launch.py` for the calls of an engine, at `table.py` for the data the kernels read.
"""

from kvspec_kernels.cache import CacheView
from kvspec_kernels.launch import Injector, Tuning
from kvspec_kernels.table import NEVER, FaultModel, FaultTable, Selector, SlotFault

__all__ = ["NEVER", "CacheView", "FaultModel", "FaultTable", "Injector", "Selector", "SlotFault", "Tuning"]
