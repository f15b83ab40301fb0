"""Every family on matrices that nobody chose: ``apply`` is linear, the product with ``to_dense``, and replays."""

from __future__ import annotations

import torch
from hypothesis import event, given
from hypothesis import strategies as st

from tests.examples import examples
from tests.properties.matrices import DTYPES, SEEDS, shapes, tensors
from tests.sketches.cases import CASES, norms_for


@st.composite
def draws(draw):
    """A family, a matrix, a seed, a size that the family has, and how much room there is."""
    family = CASES[draw(st.sampled_from(sorted(CASES)))]
    matrix = draw(tensors(shapes(min_rows=1, max_dims=2), draw(st.sampled_from(DTYPES)), max_exponent=2))
    rows, seed = matrix.shape[0], torch.tensor(draw(SEEDS))
    size = family.admissible_size(rows, draw(st.integers(1, rows) | st.just(rows) | st.just(1)))
    room = draw(st.sampled_from([2**13, 2**26]))
    return family, matrix, seed, size, room


def applied(family, matrix, seed, size, room, drawn_from=None, **options):
    source = matrix if drawn_from is None else drawn_from
    state = family.prepare(source, None, seed, size, room, norms_for(family, source.shape[0]))
    return state, family.apply(matrix, seed, size, state=state, workspace_bytes=room, **options)


@examples(60)
@given(draws(), st.sampled_from(["auto", "torch"]))
def test_apply_is_the_product_with_dense(drawn, backend):
    family, matrix, seed, size, _ = drawn
    event(family.name)
    state, found = applied(*drawn, backend=backend)
    dense = family.to_dense(matrix.shape[0], size, seed, state=state, dtype=torch.float64)
    assert found.shape == (size, matrix.shape[1])
    assert found.dtype == (torch.float64 if matrix.dtype == torch.float64 else torch.float32)
    off = 2**-20 * (dense.abs().T @ matrix.double().abs()) + 1e-37
    assert ((found.double() - dense.T @ matrix.double()).abs() <= off).all()


@examples(40)
@given(draws(), st.floats(-4.0, 4.0))
def test_apply_is_linear_and_replays(drawn, factor):
    family, matrix, seed, size, room = drawn
    matrix = matrix.double()
    other = matrix.flip(0).sin()
    _, combined = applied(family, matrix + factor * other, seed, size, room, drawn_from=matrix)
    _, first = applied(family, matrix, seed, size, room)
    _, second = applied(family, other, seed, size, room, drawn_from=matrix)
    torch.testing.assert_close(
        combined,
        first + factor * second,
        rtol=1e-6,
        atol=1e-6 * (1 + matrix.abs().max().item() if matrix.numel() else 1),
    )
    assert torch.equal(first, applied(family, matrix, seed, size, room)[1])
    assert torch.equal(first, applied(family, matrix.clone(), torch.tensor(int(seed)), size, room)[1])


@examples(40)
@given(draws())
def test_centring_needs_the_sketch_of_ones(drawn):
    from rmm_gnn.sketches import Draw

    family, matrix, seed, size, room = drawn
    state = family.prepare(matrix, None, seed, size, room, norms_for(family, matrix.shape[0]))
    found = family.sketch_ones(matrix.shape[0], Draw(seed, size, state, room), torch.float64)
    dense = family.to_dense(matrix.shape[0], size, seed, state=state, dtype=torch.float64)
    torch.testing.assert_close(found.double(), dense.sum(0), rtol=1e-5, atol=1e-5 * dense.abs().sum(0).max().item())
