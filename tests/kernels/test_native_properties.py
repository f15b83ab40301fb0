"""The kernels in C against plain torch on matrices that nobody chose: sizes, strides, types, values, threads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmm_gnn.autograd.dropout import apply_dropout
from rmm_gnn.codecs import StochasticCodec
from rmm_gnn.kernels import count_sketch_native
from rmm_gnn.sketches import CountSketch
from tests.examples import examples
from tests.kernels.compiler import NEEDS_COMPILER

pytestmark = NEEDS_COMPILER
OPS = torch.ops.rmm_gnn
VIEWS = {
    "plain": lambda m: m,
    "transposed": lambda m: m.t().contiguous().t(),
    "every other column": lambda m: m.repeat_interleave(2, 1)[:, ::2],
    "every other row": lambda m: m.repeat_interleave(2, 0)[::2],
    "offset": lambda m: torch.cat([m.new_full((1, m.shape[1]), torch.nan), m])[1:],
    "stride 0": lambda m: m[:1].expand_as(m),
}
ODD = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-40, 65504.0]


@st.composite
def matrices(draw, min_rows=0):
    """A matrix on any scale, some of whose entries are odd ones."""
    rows, columns = draw(st.integers(min_rows, 70)), draw(st.integers(1, 70))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale, shift = 10.0 ** draw(st.integers(-30, 30)), draw(st.sampled_from([0.0, 1.0, -300.0]))
    matrix = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) + shift) * scale
    if rows:
        for value in draw(st.lists(st.sampled_from(ODD), max_size=4)):
            matrix[draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))] = value
    return VIEWS[draw(st.sampled_from(sorted(VIEWS)))](matrix.to(dtype))


SEEDS = st.integers(-(2**63), 2**63 - 1).map(torch.tensor)
THREADS = st.integers(1, 3)
MANY = examples(300)


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def same(found, expected):
    """Entry by entry, nan where there is nan, and of zeros the same one."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)
    numbers = ~expected.isnan()
    assert torch.equal(found.signbit() & numbers, expected.signbit() & numbers)


@MANY
@given(
    matrices(), SEEDS, THREADS, st.sampled_from([1, 2, 4, 8]), st.none() | st.integers(1, 80),
    st.sampled_from(["bf16", "fp32"]), st.integers(0, 2**31),
)  # fmt: skip
def test_codes(matrix, seed, threads, bits, group_size, scale, start):
    torch.set_num_threads(threads)
    codec, found = StochasticCodec(bits, group_size=group_size, scale=scale), []
    for backend in ("native", "torch"):
        payload = codec.empty(*matrix.shape, matrix.dtype, matrix.device)
        # As rows of a matrix that begins long before.
        whole = [tensor.new_empty(0).set_(tensor) for tensor in payload]
        codec.encode(matrix, _Shifted.of(whole, start), start, seed, backend=backend)
        found.append([*payload, codec.decode(payload, 0, *matrix.shape, matrix.dtype, backend=backend)])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=0.0, atol=0.0, equal_nan=True)


class _Shifted(list):
    """Tensors whose row numbers begin at ``start``."""

    @staticmethod
    def of(tensors, start):
        return _Shifted(_Rows(tensor, start) for tensor in tensors)


class _Rows:
    def __init__(self, tensor, start):
        self._tensor, self._start = tensor, start

    def __getitem__(self, rows):
        return self._tensor[rows.start - self._start : rows.stop - self._start]


@MANY
@given(matrices(), SEEDS, THREADS, st.floats(0.001, 0.999), st.none() | st.floats(-2.0, 2.0))
def test_activations(matrix, seed, threads, p, slope):
    torch.set_num_threads(threads)
    if slope is not None:
        slope = torch.tensor(slope, dtype=torch.bfloat16).item()  # the same number in every type
    found = []
    for backend in ("native", "torch"):
        out, bits = OPS.relu(matrix, slope, backend)
        dropped, passes = OPS.relu_dropout(matrix, p, seed, backend)
        found.append([
            out, bits, OPS.masked_grad(matrix, bits, 1.0, slope or 0.0, backend),
            dropped, passes, OPS.masked_grad(matrix, passes, 1 - p, 0.0, backend),
            apply_dropout(matrix, p, seed, backend),
        ])  # fmt: skip
    for own, other in zip(*found, strict=True):
        same(own, other)


@MANY
@given(matrices(min_rows=1), SEEDS, THREADS, st.data())
def test_sketches(matrix, seed, threads, data):
    torch.set_num_threads(threads)
    # Sums of huge numbers may overflow in one order and not in another.
    matrix = torch.where(matrix.abs() > 1e30, matrix.new_tensor(torch.inf).copysign(matrix), matrix)
    size = data.draw(st.integers(1, matrix.shape[0]))
    found = count_sketch_native.count_sketch(matrix, seed, size, 0, size, with_sums=True)
    rows = matrix.double()
    expected = CountSketch().apply(rows, seed, size, backend="torch")
    total = rows.abs().nan_to_num(0.0, 0.0, 0.0).sum(0).amax().item()
    for own, other in ((found.rows, expected), (found.sums, rows.sum(0))):
        own = own.double()
        assert torch.equal(own.isfinite(), other.isfinite())
        finite = other.isfinite()
        torch.testing.assert_close(own[finite], other[finite], rtol=0.0, atol=1e-5 * total + 1e-44)
