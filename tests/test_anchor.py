"""The fit takes off what a linear map of x_0 explains, whatever x_0 looks like, and nothing is random about it."""

import pytest
import torch

from rmm_gnn.anchor import ROWS_PER_COEFFICIENT, code_noise, fit_anchor, residual, residual_tiles
from rmm_gnn.codecs import get_codec

WORKSPACE = 2**20


def related(rows=3000, columns=6, dtype=torch.float64):
    """X = ReLU features times a matrix, plus a constant and noise of standard deviation 0.1."""
    generator = torch.Generator().manual_seed(1)
    x_0 = torch.randn(rows, columns, generator=generator, dtype=torch.float64).relu()
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return (x_0 @ mixing + 2.0 + noise).to(dtype), x_0.to(dtype), mixing


def fit(x, x_0, center=True, workspace_bytes=WORKSPACE):
    return fit_anchor(x, x_0, center=center, workspace_bytes=workspace_bytes)


def test_what_x_0_explains_is_taken_off():
    x, x_0, mixing = related()
    anchor = fit(x, x_0)
    torch.testing.assert_close(anchor.coefficients, mixing, atol=0.1, rtol=0)
    rest = residual(x, anchor)
    assert rest.std() < 0.11
    torch.testing.assert_close(rest.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(rest, x - x_0 @ anchor.coefficients - anchor.mean)


def test_few_rows_are_all_read_and_many_are_not():
    x, x_0, _ = related()
    x[1] += 1000.0  # not a row that the fit reads: every so manieth one is
    assert x.shape[0] >= 2 * ROWS_PER_COEFFICIENT * 6
    clean = related()[0]
    with_means, without = fit(x, x_0, center=False), fit(clean, x_0, center=False)
    assert torch.equal(with_means.coefficients, without.coefficients)
    few = ROWS_PER_COEFFICIENT * 6
    x, x_0 = clean[:few], x_0[:few]
    expected = torch.linalg.lstsq(x_0 - x_0.mean(0), x - x.mean(0)).solution
    torch.testing.assert_close(fit(x, x_0).coefficients, expected, rtol=1e-3, atol=1e-3)


def test_without_centring_there_is_no_constant():
    x, x_0, _ = related(200)
    anchor = fit(x, x_0, center=False)
    assert anchor.mean is None
    torch.testing.assert_close(anchor.coefficients, torch.linalg.lstsq(x_0, x).solution, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(residual(x, anchor), x - x_0 @ anchor.coefficients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("columns", ["zero", "constant", "repeated", "all zero", "one row alone", "tiny", "few rows"])
def test_rank_deficient_anchors_leave_no_more_than_a_least_squares_fit(columns, center, dtype):
    x, x_0, _ = related(180)  # all rows are read: as good as lstsq
    if columns == "zero":
        x_0[:, 2] = 0
    elif columns == "constant":
        x_0[:, 2] = 3.0
    elif columns == "repeated":
        x_0[:, 2] = 2.0 * x_0[:, 4] - x_0[:, 1]
    elif columns == "all zero":
        x_0.zero_()
    elif columns == "one row alone":
        x_0[:, 2] = 0
        x_0[0, 2] = 1.0
    elif columns == "tiny":
        x_0[:, 2] *= 1e-12
    else:
        x, x_0 = x[:4], x_0[:4]
    anchor = fit(x.to(dtype), x_0.to(dtype), center)
    assert anchor.coefficients.isfinite().all()
    target, design = (x - x.mean(0), x_0 - x_0.mean(0)) if center else (x, x_0)
    best = target - design @ torch.linalg.pinv(design, rtol=1e-9) @ target
    rest = residual(x.to(dtype), anchor).double().square().sum()
    assert rest <= best.square().sum() * 1.001 + 1e-6 * target.square().sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_fitted_in_float32(dtype):
    x, x_0, mixing = related(dtype=dtype)
    anchor = fit(x, x_0)
    assert anchor.coefficients.dtype == anchor.mean.dtype == residual(x, anchor).dtype == torch.float32
    torch.testing.assert_close(anchor.coefficients.double(), mixing, atol=0.1, rtol=0)


def test_tiles_change_nothing_and_repetition_neither():
    x, x_0, _ = related()
    whole, tiled = fit(x, x_0), fit(x, x_0, workspace_bytes=1024)
    torch.testing.assert_close(tiled.coefficients, whole.coefficients)
    assert torch.equal(fit(x, x_0).coefficients, whole.coefficients)
    wide_x, wide_x_0 = x.repeat(100, 1), x_0.repeat(100, 1)
    tiles = list(residual_tiles(wide_x, fit(wide_x, wide_x_0)._replace(coefficients=whole.coefficients)))
    assert sum(tile.shape[0] for _, tile in tiles) == wide_x.shape[0]


@pytest.mark.parametrize("spoilt", ["x", "x_0"])
def test_where_there_is_no_fit_there_is_centring(spoilt):
    """The coefficients are 0, or not finite in the columns where x is not; what is subtracted is not finite then."""
    x, x_0, _ = related()
    (x if spoilt == "x" else x_0)[0, 3] = torch.inf
    anchor = fit(x, x_0)
    assert not anchor.mean.isfinite().all()
    others = torch.arange(6) != 3
    if spoilt == "x":
        assert anchor.coefficients[:, others].isfinite().all() and anchor.mean[others].isfinite().all()
    else:
        assert not anchor.coefficients.any()


@pytest.mark.parametrize("codec", ["int1", "int4:group_size=2"])
def test_code_noise_is_what_rounding_does_and_a_wrong_one_would_show(codec):
    x, x_0, _ = related(40)
    coefficients = fit(x, x_0).coefficients
    errors = []
    for number in range(400):
        payload = get_codec(codec).encode_matrix(x_0, torch.tensor(7919 * number + 3))
        decoded = get_codec(codec).decode(payload, 0, 40, 6, torch.float64)
        errors.append(((decoded - x_0) @ coefficients).square().sum())
    errors, expected = torch.stack(errors), code_noise(x_0, coefficients, codec).sum()
    sigma = errors.std() / len(errors) ** 0.5
    assert (errors.mean() - expected).abs() < 5 * sigma < (errors.mean() - 1.25 * expected).abs()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.0273, -1.1, 1000.1])
def test_constant_columns_have_no_part_in_the_fit(dtype, value):
    """Less its mean, such a column is rounding; a fit on that is huge, and the sum with it was off by a tenth."""
    x, x_0 = torch.randn(60, 5).to(dtype), torch.randn(60, 5).to(dtype)
    x_0[:, 1:4] = value
    anchor = fit_anchor(x, x_0, center=True, workspace_bytes=2**20)
    assert not anchor.coefficients[1:4].any() and anchor.coefficients[[0, 4]].any()
    x_0[:, 2] += torch.randn(60).to(dtype) * (abs(value) + 1.0) * 0.05
    assert fit_anchor(x, x_0, center=True, workspace_bytes=2**20).coefficients[2].any()
