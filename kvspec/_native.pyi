"""Typed surface of the Rust extension. Checked against the built module by mypy's stubtest."""

from collections.abc import Sequence
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

_Key = tuple[int, int]
_Ranges = list[tuple[int, int]]

__all__ = [
    "EventTable",
    "MapCheck",
    "Pattern",
    "Sampler",
    "Selector",
    "StepFaults",
    "TrialTable",
    "__version__",
    "apply_map",
    "concatenate",
    "decode",
    "derive_keys",
    "detail_texts",
    "detail_tokens",
    "encode",
    "first_divergence_histogram",
    "format_bits",
    "format_mask",
    "format_scaled",
    "kl_full",
    "kl_topk",
    "periodic_tails",
    "philox",
    "position_counts",
    "quantize",
    "read_key",
    "schema",
    "score_texts",
    "score_tokens",
    "survival",
    "thresholds",
    "topk_agreement",
]

__version__: str

def schema(name: Literal["spec", "faultmap", "report", "diff", "certificate"]) -> str: ...
def philox(counter: tuple[int, int, int, int], key: _Key) -> tuple[int, int, int, int]: ...
def derive_keys(
    seed: int, experiment: int, trial: int, fault: int, target: str = "values"
) -> tuple[_Key, _Key]: ...
def read_key(master: _Key, request: int, step: int) -> _Key: ...
def thresholds(units: int, probability: float) -> NDArray[np.uint64]: ...
def format_bits(format: str, target: str = "values") -> int: ...
def format_mask(format: str, bits: str, target: str = "values") -> int: ...
def format_scaled(format: str) -> bool: ...
def encode(
    format: str, values: NDArray[np.float32], scales: NDArray[np.float32] | None = None
) -> NDArray[np.uint32]: ...
def decode(
    format: str, codes: NDArray[np.uint32], scales: NDArray[np.float32] | None = None
) -> NDArray[np.float32]: ...
def quantize(
    format: str, values: NDArray[np.float32], codes: NDArray[np.uint8] | None = None
) -> NDArray[np.float32]: ...
@final
class Sampler:
    def __new__(
        cls,
        *,
        head_size: int,
        bits: int,
        heads: int,
        planes: int = 2,
        first_plane: int = 0,
        rate: float,
        per: Literal["bit", "element", "row"] = "bit",
        mask: int,
        burst_len: int = 1,
        page_tokens: int = 0,
        page_rate: float = 1.0,
    ) -> Sampler: ...
    @property
    def level(self) -> Literal["token", "head", "dense"]: ...
    @property
    def thresholds(self) -> NDArray[np.uint64]: ...
    @property
    def page_threshold(self) -> int | None: ...
    @property
    def eligible_bits_per_row(self) -> int: ...
    @property
    def expected_flips_per_row(self) -> float: ...
    def enumerate(
        self,
        *,
        key: _Key,
        request: int,
        layers: tuple[int, int],
        tokens: tuple[int, int],
        prompt_len: int = 0,
        selector: Selector | None = None,
    ) -> dict[str, NDArray[np.generic]]: ...
    def count(
        self,
        *,
        key: _Key,
        request: int,
        layers: tuple[int, int],
        tokens: tuple[int, int],
        prompt_len: int = 0,
        selector: Selector | None = None,
    ) -> int: ...

@final
class Selector:
    def __new__(
        cls,
        *,
        layers: _Ranges | None = None,
        heads: _Ranges | None = None,
        planes: tuple[bool, bool] = (True, True),
        phase: Literal["all", "prompt", "decode"] = "all",
        tokens: _Ranges | None = None,
        steps: _Ranges | None = None,
    ) -> Selector: ...

@final
class TrialTable:
    def __new__(
        cls,
        *,
        layers: int,
        samplers: list[Sampler],
        selectors: list[Selector],
        sampler: NDArray[np.uint32],
        selector: NDArray[np.uint32],
        write_key: NDArray[np.uint32],
        request: NDArray[np.uint32],
        prompt_len: NDArray[np.uint32],
        site: list[str] | None = None,
        op: list[str] | None = None,
        target: list[str] | None = None,
        read_master: NDArray[np.uint32] | None = None,
    ) -> TrialTable: ...
    def __len__(self) -> int: ...
    def planned(self, entry: NDArray[np.uint32], written: NDArray[np.uint32]) -> NDArray[np.uint64]: ...
    def write_step(
        self,
        *,
        entry: NDArray[np.uint32],
        row: NDArray[np.uint32],
        start: NDArray[np.uint32],
        count: NDArray[np.uint32],
    ) -> StepFaults: ...
    def read_step(
        self,
        *,
        entry: NDArray[np.uint32],
        row: NDArray[np.uint32],
        start: NDArray[np.uint32],
        count: NDArray[np.uint32],
    ) -> StepFaults: ...

@final
class EventTable:
    def __new__(
        cls,
        *,
        layers: int,
        bits: int,
        starts: NDArray[np.uint64],
        prompt_len: NDArray[np.uint32],
        columns: dict[str, NDArray[Any]],
        op: NDArray[np.uint8],
        target: NDArray[np.uint8] | None = None,
    ) -> EventTable: ...
    def __len__(self) -> int: ...
    def write_step(
        self,
        *,
        entry: NDArray[np.uint32],
        row: NDArray[np.uint32],
        start: NDArray[np.uint32],
        count: NDArray[np.uint32],
    ) -> StepFaults: ...
    def read_step(
        self,
        *,
        entry: NDArray[np.uint32],
        row: NDArray[np.uint32],
        start: NDArray[np.uint32],
        count: NDArray[np.uint32],
    ) -> StepFaults: ...

@final
class StepFaults:
    def __len__(self) -> int: ...
    def layer_len(self, layer: int) -> int: ...
    def inject(
        self,
        layer: int,
        words: NDArray[np.uint32],
        *,
        block_table: NDArray[np.int32],
        offsets: NDArray[np.int64],
        block_stride: int,
        format: str,
        codes: NDArray[np.uint8] | None = None,
        scales: NDArray[np.uint32] | None = None,
    ) -> None: ...
    def restore(
        self,
        words: NDArray[np.uint32],
        *,
        format: str,
        codes: NDArray[np.uint8] | None = None,
        scales: NDArray[np.uint32] | None = None,
    ) -> None: ...
    @property
    def landed(self) -> NDArray[np.uint64]: ...
    @property
    def changed(self) -> NDArray[np.uint64]: ...
    @property
    def exposed(self) -> NDArray[np.uint64]: ...
    @property
    def restored(self) -> NDArray[np.uint64]: ...
    def columns(self, layer: int) -> dict[str, NDArray[np.generic]]: ...

@final
class Pattern:
    def __new__(cls, pattern: str) -> Pattern: ...
    def occurs_in(self, text: str) -> bool: ...

@final
class MapCheck:
    def __new__(
        cls,
        *,
        request: tuple[int, int],
        step: tuple[int, int] | None,
        layer: tuple[int, int],
        kv: tuple[int, int],
        head: tuple[int, int],
        token: tuple[int, int],
        elem: tuple[int, int],
        bit: tuple[int, int],
    ) -> MapCheck: ...
    def push(self, columns: dict[str, NDArray[Any]]) -> tuple[str, str, int, str] | None: ...
    @property
    def rows(self) -> int: ...

def apply_map(
    words: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32],
    columns: dict[str, NDArray[Any]],
    *,
    shape: Sequence[int],
    strides: Sequence[int],
    base: int = 0,
    op: str = "flip",
) -> None: ...

def concatenate(arrays: list[NDArray[Any]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]] | None: ...
def score_tokens(
    golden_values: NDArray[np.uint32],
    golden_offsets: NDArray[np.int64],
    values: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    golden_index: NDArray[np.uint32],
    *,
    edit_distance: bool = True,
    limit: int | None = None,
    threads: int = 0,
) -> dict[str, NDArray[np.generic]]: ...
def score_texts(
    golden: list[str],
    texts: list[str],
    golden_index: NDArray[np.uint32],
    *,
    edit_distance: bool = True,
    limit: int | None = None,
    by_byte: bool = False,
    threads: int = 0,
) -> dict[str, NDArray[np.generic]]: ...
def detail_tokens(
    golden_values: NDArray[np.uint32],
    golden_offsets: NDArray[np.int64],
    values: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    golden_index: NDArray[np.uint32],
    *,
    indel_distance: bool = True,
    limit: int | None = None,
    threads: int = 0,
) -> dict[str, NDArray[np.generic]]: ...
def detail_texts(
    golden: list[str],
    texts: list[str],
    golden_index: NDArray[np.uint32],
    *,
    indel_distance: bool = True,
    limit: int | None = None,
    threads: int = 0,
) -> dict[str, NDArray[np.generic]]: ...
def position_counts(
    golden_values: NDArray[np.uint32],
    golden_offsets: NDArray[np.int64],
    values: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    golden_index: NDArray[np.uint32],
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]: ...
def first_divergence_histogram(first_divergence: NDArray[np.int64], positions: int) -> NDArray[np.uint64]: ...
def survival(
    first_divergence: NDArray[np.int64], lengths: NDArray[np.uint32], positions: int
) -> NDArray[np.float64]: ...
def periodic_tails(
    values: NDArray[np.uint32], offsets: NDArray[np.int64], longest_period: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]: ...
def kl_full(golden: NDArray[np.float32], faulty: NDArray[np.float32]) -> NDArray[np.float64]: ...
def kl_topk(
    golden_ids: NDArray[np.uint32],
    golden: NDArray[np.float32],
    faulty_ids: NDArray[np.uint32],
    faulty: NDArray[np.float32],
) -> NDArray[np.float64]: ...
def topk_agreement(golden_ids: NDArray[np.uint32], faulty_ids: NDArray[np.uint32]) -> NDArray[np.float64]: ...
