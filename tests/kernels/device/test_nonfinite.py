import numpy as np
import pytest
import torch
from kernel_rig import DEVICE, Fault, Geometry, Request, Rig
from kvspec_kernels import NEVER, SlotFault


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_first_token_with_nonfinite_logits(dtype):
    geometry = Geometry(16, 1, 16)
    rig = Rig(geometry, slots=8)
    rig.table.load([Fault(geometry, 0.1, 1).model()], [Fault(geometry, 0.1, 1).selector()])
    fault = SlotFault(model=0, selector=0, request=0, prompt_len=10)
    # slots: 5 and 2 and 7 watched, 1 golden, 3 not watched
    unwatched = SlotFault(model=0, selector=0, request=0, prompt_len=10, watch=False)
    rig.table.assign([5, 2, 7, 1, 3], [fault, fault, fault, None, unwatched])
    vocab, wide = 5003, 5100
    logits = torch.zeros(7, wide, dtype=dtype, device=DEVICE)[:, :vocab]
    logits[:] = torch.finfo(dtype).max
    batch_slot = torch.tensor([5, 2, 7, 1, 3, -1, 4], dtype=torch.int32, device=DEVICE)

    def find(lengths):
        rig.injector.find_nonfinite(logits, batch_slot, torch.tensor(lengths, dtype=torch.int32, device=DEVICE))
        return rig.table.nonfinite.tolist()

    assert find([12] * 7) == [NEVER] * 8
    logits[0, vocab - 1] = float("nan")
    logits[2, 0] = float("-inf")
    logits[3:] = float("inf")
    expected = [NEVER] * 8
    # a prompt that is not complete predicts nothing
    assert find([9, 12, 9, 12, 12, 12, 12]) == expected
    expected[5], expected[7] = 3, 0
    assert find([13, 12, 10, 12, 12, 12, 12]) == expected
    # the first one stays
    assert find([14, 12, 11, 12, 12, 12, 12]) == expected
    rig.table.assign([5], [fault])
    expected[5] = NEVER
    assert rig.table.nonfinite.tolist() == expected


def test_every_nonfinite_code_counts_and_no_other():
    codes = np.arange(2**16, dtype=np.uint16)
    geometry = Geometry(16, 1, 16)
    rig = Rig(geometry, slots=1)
    rig.table.load([Fault(geometry, 0.1, 1).model()], [Fault(geometry, 0.1, 1).selector()])
    fault = SlotFault(model=0, selector=0, request=0, prompt_len=0)
    slot, length = torch.zeros(1, dtype=torch.int32, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    for dtype in (torch.bfloat16, torch.float16):
        values = torch.from_numpy(codes.view(np.int16)).view(dtype).to(DEVICE)
        finite = torch.isfinite(values)
        for part, expected in ((values[finite], NEVER), (values[~finite], 0)):
            rig.table.assign([0], [fault])
            rig.injector.find_nonfinite(part[None], slot, length)
            assert rig.table.nonfinite.tolist() == [expected]
        for value in values[~finite][:: max(1, int((~finite).sum()) // 5)]:
            rig.table.assign([0], [fault])
            rig.injector.find_nonfinite(value.view(1, 1), slot, length)
            assert rig.table.nonfinite.tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_logits_are_read_only_where_hidden_states_are_suspicious(dtype):
    geometry = Geometry(16, 1, 16)
    rig = Rig(geometry, slots=8)
    rig.table.load([Fault(geometry, 0.1, 1).model()], [Fault(geometry, 0.1, 1).selector()])
    rig.table.assign(list(range(8)), [SlotFault(model=0, selector=0, request=0, prompt_len=0)] * 8)
    logits = torch.full((8, 3000), float("nan"), dtype=dtype, device=DEVICE)
    hidden = torch.zeros(8, 100, dtype=dtype, device=DEVICE)
    hidden[:, 5] = torch.tensor([1.0, -9e29, 9e29, 1.1e30, -1.1e30, float("inf"), float("nan"), -0.0])
    slots = torch.arange(8, dtype=torch.int32, device=DEVICE)
    rig.injector.find_nonfinite(logits, slots, slots * 0 + 2, hidden)
    assert [n != NEVER for n in rig.table.nonfinite.tolist()] == [False] * 3 + [True] * 4 + [False]
    # suspicious, but finite
    rig.table.assign(list(range(8)), [SlotFault(model=0, selector=0, request=0, prompt_len=0)] * 8)
    rig.injector.find_nonfinite(torch.zeros_like(logits), slots, slots * 0 + 2, hidden)
    assert rig.table.nonfinite.tolist() == [NEVER] * 8


def test_looking_at_logits_empties_the_lists_of_cells():
    geometry = Geometry(16, 2, 16)
    fault = Fault(geometry, 0.2, 0xFFFF)
    requests = [
        Request(slot=3, start=0, count=4),  # golden, in the first row: its program has nothing else to do
        Request(slot=1, start=0, count=5, prompt_len=5, fault=fault, write_key=(1, 2), read_master=(3, 4)),
    ]
    rig = Rig(geometry, layers=3)
    rig.enter(requests)
    rig.begin(reads=True)
    listed = rig.injector.counts.tolist()
    assert [min(row) > 0 for row in listed] == [True, True]
    logits = torch.zeros(2, 100, dtype=torch.bfloat16, device=DEVICE)
    rig.injector.find_nonfinite(logits, rig.batch_slot, rig.seq_lens)
    assert not rig.injector.counts.any()
    rig.begin(reads=True)
    assert rig.injector.counts.tolist() == listed
    rig.begin(reads=True)  # nobody has looked at logits since
    assert rig.injector.counts.tolist() == listed
