# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Philox4x32-10 on the device, and what is drawn from it (sampling.md, section 2).

`tl.philox` is not used: it silently becomes Philox4x64 when a counter word is 64 bits wide.

    key      two uint32 words
    counter  c0 = token, c1 = layer << 16 | kv << 15 | head, c2 = request, c3 = domain << 24 | block
    draw d   64 bits of block d >> 1: words 0 and 1 if d is even, words 2 and 3 if it is odd; high half
             first

Every function takes scalars and vectors alike, mixed as broadcasting allows.
"""

import triton
import triton.language as tl

DOMAIN_ROW = tl.constexpr(0)
DOMAIN_PAGE = tl.constexpr(1)
DOMAIN_DENSE = tl.constexpr(2)
DOMAIN_PICK = tl.constexpr(3)
DOMAIN_TOKEN = tl.constexpr(4)
DOMAIN_READ = tl.constexpr(5)


@triton.jit
def philox(c0, c1, c2, c3, key0, key1):
    """The four uint32 words of one block. All arguments are uint32."""
    for _ in tl.static_range(10):
        low0 = tl.mul(c0, 0xD2511F53, sanitize_overflow=False)
        low2 = tl.mul(c2, 0xCD9E8D57, sanitize_overflow=False)
        next0 = tl.umulhi(c2, 0xCD9E8D57) ^ c1 ^ key0
        next2 = tl.umulhi(c0, 0xD2511F53) ^ c3 ^ key1
        c0 = next0
        c1 = low2
        c2 = next2
        c3 = low0
        key0 = tl.add(key0, 0x9E3779B9, sanitize_overflow=False)
        key1 = tl.add(key1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def join(high, low):
    """`high << 32 | low` as uint64."""
    return (high.to(tl.uint64) << 32) | low.to(tl.uint64)


@triton.jit
def draw(c0, c1, c2, key0, key1, domain, index):
    """Draw `index` (int32, not negative) of a domain as uint64. The other arguments are uint32."""
    c3 = (index.to(tl.uint32) >> 1) | (domain << 24)
    w0, w1, w2, w3 = philox(c0, c1, c2, c3, key0, key1)
    odd = (index & 1) == 1
    return join(tl.where(odd, w2, w0), tl.where(odd, w3, w1))


@triton.jit
def bounded(number, bound):
    """`floor(number * bound / 2^64)` as int32, for uint64 `number` and int32 `bound` > 0; exact."""
    bound = bound.to(tl.uint64)
    low = (number & 0xFFFFFFFF) * bound
    return (((number >> 32) * bound + (low >> 32)) >> 32).to(tl.int32)


@triton.jit
def read_key(master0, master1, request, step):
    """Key of the read event `step` of a request: words 0 and 1. All arguments are uint32 scalars or vectors."""
    zero = step & 0
    key0, key1, _, _ = philox(step, zero, request, zero | (DOMAIN_READ << 24), master0, master1)
    return key0, key1
