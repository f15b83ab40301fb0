"""The kernels in C against plain torch; they are compiled when the package is installed."""

import pytest
import torch

from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.kernels import building, count_sketch_native, native, resolve
from rmm_gnn.sketches import CountSketch
from rmm_gnn.sketches.base import Draw
from tests.kernels.compiler import NEEDS_COMPILER
from tests.kernels.device import far_apart

# Where there is one, installing the package compiled them, and these tests fail if it did not.
pytestmark = NEEDS_COMPILER
FAMILY = CountSketch()
SEED = torch.tensor(2**40 + 11)


def assert_is_sketch(matrix, size, start, stop, rows=None):
    """Sums of a bucket are formed in another order than plain torch's: the error is that of so many roundings."""
    found = count_sketch_native.count_sketch(matrix, SEED, size, start, stop, rows=rows, with_sums=True)
    selected = (matrix if rows is None else matrix[rows.long()]).double()
    num_rows = selected.shape[0]
    expected = FAMILY.apply(selected, SEED, size, backend="torch")[start:stop]
    largest = selected.abs().amax().item() * -(-num_rows // size)
    assert found.rows.dtype == (torch.float64 if matrix.dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.rows.double(), expected, rtol=1e-6, atol=1e-6 * largest)
    ones = FAMILY.sketch_ones(num_rows, Draw(SEED, size), torch.float32)
    assert torch.equal(found.ones.float(), ones[start:stop])
    if (start, stop) == (0, size):
        total = selected.abs().sum(0).amax().item()
        torch.testing.assert_close(found.sums.double(), selected.sum(0), rtol=1e-6, atol=1e-6 * total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("columns", [1, 40, 100, 256, 768])
@pytest.mark.parametrize("num_rows", [1, 63, 100, 4097])
def test_equals_plain_torch(num_rows, columns, dtype):
    matrix = torch.randn(num_rows, columns).to(dtype)
    for size in {1, max(1, num_rows // 10), max(1, num_rows - 3), num_rows}:
        assert_is_sketch(matrix, size, 0, size)


@pytest.mark.parametrize(
    "view",
    [lambda m: m.t(), lambda m: m[:, ::2], lambda m: m[::3], lambda m: m[:1].expand(50, -1), lambda m: m[:, :1]],
    ids=["transposed", "every other column", "every third row", "stride 0", "one column"],
)
def test_any_strides(view):
    assert_is_sketch(view(torch.randn(100, 64)), 7, 0, 7)


def test_part_of_the_buckets_and_selected_rows():
    matrix = torch.randn(500, 24)
    for start, stop in [(0, 1), (3, 40), (49, 50)]:
        assert_is_sketch(matrix, 50, start, stop)
    rows = torch.randperm(500)[:333:3]
    for numbers in (rows, rows.int(), torch.stack([rows, rows], 1)[:, 0]):
        assert_is_sketch(matrix, 20, 0, 20, numbers)


def test_more_than_2_to_the_31_elements():
    assert_is_sketch(far_apart(5, 40, torch.bfloat16, torch.device("cpu")), 2, 0, 2)


def test_rows_do_not_depend_on_the_threads():
    matrix, threads = torch.randn(4000, 256), torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 7):
            torch.set_num_threads(number)
            found.append(count_sketch_native.count_sketch(matrix, SEED, 400, 0, 400, with_sums=True))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(other.rows, found[0].rows) and torch.equal(other.ones, found[0].ones)
        torch.testing.assert_close(other.sums, found[0].sums, rtol=0.0, atol=1e-7 * matrix.abs().sum(0).max().item())


def test_inf_and_nan_stay_in_their_bucket_and_column():
    matrix = torch.zeros(100, 3)
    matrix[4, 0], matrix[50, 1] = torch.inf, torch.nan
    found = count_sketch_native.count_sketch(matrix, SEED, 10, 0, 10, with_sums=True)
    torch.testing.assert_close(found.rows, FAMILY.apply(matrix, SEED, 10, backend="torch"), equal_nan=True)
    assert found.sums[0].isinf() and found.sums[1].isnan() and found.sums[2] == 0


def test_nothing_to_sum():
    found = count_sketch_native.count_sketch(torch.ones(10, 0), SEED, 2, 0, 2, with_sums=True)
    assert found.rows.shape == (2, 0) and found.sums.shape == (0,)


def test_sums_of_long_buckets_are_those_of_float64():
    # A float32 counter stops at 2^24.
    assert (
        count_sketch_native.count_sketch(torch.ones(2**24 + 3, 1), SEED, 1, 0, 1, with_sums=True).sums.item()
        == 2**24 + 4
    )
    matrix = torch.rand(300_000, 3)
    sums = count_sketch_native.count_sketch(matrix, SEED, 2, 0, 2, with_sums=True).sums
    torch.testing.assert_close(sums, matrix.double().sum(0).float(), rtol=2e-7, atol=0.0)


def test_sums_share_a_small_workspace():
    matrix = torch.randn(2000, 256)
    small = count_sketch_native.count_sketch(matrix, SEED, 20, 0, 20, with_sums=True, workspace_bytes=1)
    assert torch.equal(small.rows, count_sketch_native.count_sketch(matrix, SEED, 20, 0, 20).rows)


def test_a_default_device_does_not_move_the_results():
    matrix = torch.randn(30, 4)
    with torch.device("meta"):
        found = count_sketch_native.count_sketch(matrix, SEED, 3, 0, 3, with_sums=True)
    assert {tensor.device.type for tensor in found} == {"cpu"}


@pytest.mark.parametrize("rows", [[0, 30], [-1, 2]], ids=str)
def test_rows_that_are_not_there(rows):
    for dtype in (torch.int32, torch.int64):
        with pytest.raises(IndexError, match=r"'rows' must be rows of the matrix \(one is not in \[0, 30\)\)"):
            count_sketch_native.count_sketch(
                torch.randn(30, 4), SEED, 1, 0, 1, rows=torch.tensor(rows, dtype=dtype), with_sums=True
            )
    with pytest.raises(ValueError, match=r"rows of torch.int16 on cpu"):
        count_sketch_native.count_sketch(torch.randn(30, 4), SEED, 1, 0, 1, rows=torch.tensor([1], dtype=torch.int16))


def test_what_kernels_cannot_see_goes_by_torch():
    matrix = torch.randn(30, 4)
    negative = torch.complex(matrix, matrix).conj().imag
    torch.testing.assert_close(FAMILY.apply(negative, SEED, 3), FAMILY.apply(-matrix, SEED, 3))
    assert FAMILY.apply(matrix.clone().requires_grad_(), SEED, 3).requires_grad
    mapped = torch.func.vmap(lambda m: FAMILY.apply(m, SEED, 3))(matrix.expand(2, 30, 4))
    torch.testing.assert_close(mapped[1], FAMILY.apply(matrix, SEED, 3))
    with pytest.raises(ValueError, match="without a gradient"):
        FAMILY.apply(matrix.clone().requires_grad_(), SEED, 3, backend="native")


def weight_grad(backend, dtype=torch.float32, row_mask=None, **settings):
    generator = torch.Generator().manual_seed(0)
    x, grad_output = (torch.randn(300, n, generator=generator).to(dtype) for n in (24, 5))
    weight, bias = (torch.zeros(*shape, dtype=dtype, requires_grad=True) for shape in ((5, 24), (5,)))
    config = RMMConfig(backend=backend, **settings)
    if row_mask is not None:
        grad_output = grad_output * row_mask.unsqueeze(1)
    rmm_linear(x, weight, bias, config=config, seed=3, row_mask=row_mask).backward(grad_output)
    return weight.grad, bias.grad


@pytest.mark.parametrize("masked", [False, True], ids=["all rows", "row mask"])
@pytest.mark.parametrize("center", [True, False], ids=["centred", "plain"])
@pytest.mark.parametrize("workspace_bytes", [2**26, 4096], ids=["in one pass", "in blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_the_same(dtype, workspace_bytes, center, masked):
    settings = {"rate": 0.5, "center": center, "workspace_bytes": workspace_bytes, "dtype": dtype}
    settings["row_mask"] = torch.arange(300) % 3 > 0 if masked else None
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for own, other in zip(weight_grad("native", **settings), weight_grad("torch", **settings), strict=True):
        torch.testing.assert_close(own, other, rtol=tolerance, atol=10 * tolerance)


def test_auto_takes_them_where_it_can(monkeypatch):
    assert resolve("auto", torch.ones(1)) == "native"
    assert resolve("auto", torch.ones(1, dtype=torch.float16)) == "torch"
    assert resolve("auto", torch.ones(1, device="meta")) == "torch"
    monkeypatch.setattr(native, "is_built", lambda: False)
    assert resolve("auto", torch.ones(1)) == "torch"
    with pytest.raises(ImportError, match="compiled on installation"):
        RMMConfig(backend="native")


def test_other_types_are_refused_where_they_are_asked_for():
    with pytest.raises(ValueError, match=r"'backend' must be one that takes torch.float16 on cpu \(got 'native'"):
        weight_grad("native", dtype=torch.float16)


def test_compiling_says_what_went_wrong(monkeypatch, tmp_path):
    library = tmp_path / "kernels.so"
    assert building.compile_library(library) is None and library.stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.so"]
    monkeypatch.setenv("CC", "false")
    assert "false" in building.compile_library(library)
    assert not list(tmp_path.iterdir())  # what was there is not of these sources
    monkeypatch.delenv("CC")
    assert "missing" in building.compile_library(tmp_path / "missing" / "kernels.so")
    monkeypatch.setenv("PATH", "")
    assert building.compile_library(library) == "there is no C compiler."


def test_a_library_of_other_sources_is_not_used(monkeypatch, tmp_path):
    is_built = native.is_built.__wrapped__
    other, broken, right = (tmp_path / f"{name}.so" for name in ("other", "broken", "right"))
    with monkeypatch.context() as patch:
        patch.setattr(building, "fingerprint", lambda: "of another day")
        assert building.compile_library(other) is None
    broken.write_text("no library")
    assert building.compile_library(right) is None
    for library, expected in ((other, "of other sources"), (broken, "of another machine")):
        monkeypatch.setattr(building, "LIBRARY", library)
        with pytest.warns(UserWarning, match=expected):
            assert not is_built()
    monkeypatch.setattr(building, "LIBRARY", tmp_path / "missing.so")
    assert not is_built()
    monkeypatch.setattr(building, "LIBRARY", right)
    assert is_built()
