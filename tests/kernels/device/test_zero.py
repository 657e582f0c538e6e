"""Zeroing of blocks in all layers at once: what a call of torch per layer does, and nothing else."""

import numpy as np
import pytest
import torch
from kernel_rig import DEVICE
from kvspec_kernels.zero import ZeroBlocks

LAYERS, BLOCKS = 3, 7


def caches(layout, dtype, device=DEVICE):
    """(all memory, the caches in it): each with a tensor of its own, or `strided` in one, blocks of the layers in
    turns and with a gap behind each."""
    shape = {"flash": (2, 4, 3, 20), "packed": (3, 4, 40), "strided": (3, 4, 40)}[layout]
    size = int(np.prod(shape))
    if layout == "strided":
        whole = torch.empty(BLOCKS, LAYERS, size + 8, dtype=dtype, device=device)
        return whole, [whole[:, i, :size].unflatten(1, shape) for i in range(LAYERS)]
    whole = torch.empty(LAYERS, BLOCKS, *shape, dtype=dtype, device=device)
    # as some backends permute it: the elements of a block still lie side by side
    return whole, [x.transpose(1, 2) if layout == "packed" else x for x in whole.unbind()]


def fill(whole):
    raw = np.random.default_rng(1).integers(1, 256, whole.numel() * whole.element_size()).astype(np.uint8)
    whole.view(-1).view(torch.uint8).copy_(torch.from_numpy(raw))


@pytest.mark.parametrize("layout", ["flash", "packed", "strided"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8, torch.float8_e4m3fn, torch.float32], ids=str)
def test_blocks_are_zeroed_as_torch_does(layout, dtype):
    (mine, ours), (torchs, theirs) = caches(layout, dtype), caches(layout, dtype)
    zero = ZeroBlocks(ours, block=64)
    for blocks in ([4], [0, 2, 6]):
        fill(mine), fill(torchs)
        zero(blocks)
        index = torch.tensor(blocks, device=DEVICE)
        for cache in theirs:
            (cache.view(torch.uint8) if cache.element_size() == 1 else cache).index_fill_(0, index, 0)
        assert torch.equal(mine.view(torch.uint8), torchs.view(torch.uint8))
        assert [bool((cache[b].view(torch.uint8) == 0).all()) for cache in ours for b in range(BLOCKS)] == [
            b in blocks for b in range(BLOCKS)
        ] * LAYERS


def test_blocks_and_layers_far_away():
    """Beyond 2^31 words; only touched pages of the mapping exist on a CPU."""
    words = 16
    cache = torch.empty(2**31 + 4 * words, dtype=torch.int32, device=DEVICE).view(-1, words)
    last = len(cache) - 1
    assert (last - 1) * words > 2**31
    zeroed = {(cache,): [1, last - 1], (cache[:4], cache[-4:]): [1, 2]}
    for layers, blocks in zeroed.items():
        for end in (cache[:4], cache[-4:]):
            end.fill_(3)
        ZeroBlocks(layers, block=16)(blocks)
        wanted = [[3, 0, 3, 3], [3, 3, 0, 3]] if len(layers) == 1 else [[3, 0, 0, 3]] * 2
        for end, row in zip((cache[:4], cache[-4:]), wanted, strict=True):
            assert end[:, 0].tolist() == row
            assert (end == end[:, :1]).all()


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: [torch.zeros(4, 8), torch.zeros(4, 16)], "the layers differ"),
        (lambda: [torch.zeros(4, 8)[:, ::2]], "not whole words side by side"),
        (lambda: [torch.zeros(4, 3, dtype=torch.bfloat16)], "not whole words side by side"),
    ],
)
def test_what_it_cannot_address_is_refused(made, why):
    with pytest.raises(ValueError, match=why):
        ZeroBlocks(made())
