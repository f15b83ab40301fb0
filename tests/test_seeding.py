"""The hash, the streams, and the seed that starts them."""

import torch

from rmm_gnn import draw_seed
from rmm_gnn.seeding import Stream, hash_index, mix32, random_signs, uniform


def test_mixing_is_a_bijection_on_a_sample():
    words = torch.arange(0, 2**32, 4099)
    assert mix32(words.clone()).unique().numel() == words.numel()


def test_mixing_stays_in_32_bits_and_matches_python_integers():
    def by_hand(word):
        word ^= word >> 15
        word = word * 0x2C1B3C6D % 2**32
        word ^= word >> 12
        word = word * 0x297A2D39 % 2**32
        return word ^ (word >> 15)

    words = [0, 1, 2**31, 2**32 - 1, 123456789]
    assert mix32(torch.tensor(words)).tolist() == [by_hand(word) for word in words]


def test_every_input_bit_flips_half_of_the_output_bits():
    index, seed = torch.arange(20_000), torch.tensor(11)
    base = hash_index(seed, Stream.SIGNS, index)
    for bit in range(15):
        changed = base ^ hash_index(seed, Stream.SIGNS, index ^ (1 << bit))
        flips = torch.stack([(changed >> place) & 1 for place in range(32)]).double().mean(1)
        assert ((flips - 0.5).abs() < 5 * 0.5 / 20_000**0.5).all()


def test_uniform_over_seeds_at_every_index_also_for_small_seeds():
    """A key schedule whose keys are related sends index 0 to 0 for every seed below 2^32; this is how it showed."""
    for stride in (1, 7919, 12345678901):
        draws = torch.stack([uniform(torch.tensor(stride * n), Stream.SAMPLING, torch.arange(8)) for n in range(2000)])
        z = (draws.mean(0) - 0.5).abs() / (1 / 12 / 2000) ** 0.5
        assert z.max() < 5
        correlation = torch.corrcoef(draws.T) - torch.eye(8, dtype=torch.float64)
        assert correlation.abs().max() < 5 / 2000**0.5


def test_streams_of_one_seed_are_unrelated():
    index = torch.arange(50_000)
    signs = [1 - 2.0 * (hash_index(torch.tensor(3), stream, index) >> 31) for stream in Stream]
    correlation = torch.corrcoef(torch.stack(signs)) - torch.eye(len(signs))
    assert correlation.abs().max() < 5 / 50_000**0.5


def test_signs_of_a_range_do_not_depend_on_where_it_is_cut():
    seed = torch.tensor(8)
    whole = random_signs(seed, 0, 1000, torch.float32)
    assert set(whole.tolist()) == {-1.0, 1.0}
    assert abs(whole.mean()) < 5 / 1000**0.5
    for start, stop in ((0, 31), (31, 33), (500, 999)):
        assert torch.equal(random_signs(seed, start, stop, torch.float32), whole[start:stop])


def test_draws_differ_and_replay():
    like = torch.zeros(1)
    torch.manual_seed(0)
    first = [int(draw_seed(like)) for _ in range(100)]
    assert len(set(first)) == 100
    torch.manual_seed(0)
    assert [int(draw_seed(like)) for _ in range(100)] == first


def test_a_generator_of_its_own_leaves_the_default_one_alone():
    state = torch.get_rng_state()
    own = torch.Generator().manual_seed(4)
    first = draw_seed(torch.zeros(1), own)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, draw_seed(torch.zeros(1), torch.Generator().manual_seed(4)))
    assert first.dtype == torch.int64 and first.dim() == 0
