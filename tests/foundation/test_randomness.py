import torch

from foundation.running.randomness import normal_field, path_draws, sample_generator, sample_seed


def test_purposes_positions_and_seeds_are_apart() -> None:
    seeds = {
        sample_seed(seed, position=position, purpose=purpose)
        for seed in (0, 1)
        for position in range(50)
        for purpose in ("mask", "view 0", "view 1")
    }
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_generator_does_not_touch_the_global_one() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = torch.rand(3, generator=sample_generator(5, position=2, purpose="mask"))
    again = torch.rand(3, generator=sample_generator(5, position=2, purpose="mask"))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_standard_normal_and_white() -> None:
    seeds = torch.tensor([1, 2, 2**40 + 1])
    noise = normal_field(seeds, num_values=100_001).double()
    assert noise.shape == (3, 100_001)
    # Five standard errors: 5 / sqrt(1e5) = 0.016 for mean and correlation, 0.022 for the variance.
    assert noise.mean(1).abs().max() < 0.016
    assert (noise.var(1) - 1).abs().max() < 0.023
    sorted_noise = noise[0].sort().values
    expected = torch.special.ndtri((torch.arange(100_001, dtype=torch.float64) + 0.5) / 100_001)
    inner = slice(100, -100)
    # Quantiles agree with the normal distribution's up to the 0.1% tails.
    torch.testing.assert_close(sorted_noise[inner], expected[inner], atol=0.15, rtol=0)
    assert (noise[:, :-1] * noise[:, 1:]).mean(1).abs().max() < 0.016
    half = noise.shape[1] // 2
    assert (noise[:, :half] * noise[:, half + 1 :]).mean(1).abs().max() < 0.023
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.016


def test_a_field_follows_from_its_seed_alone() -> None:
    both = normal_field(torch.tensor([9, 4]), num_values=11)
    assert torch.equal(normal_field(torch.tensor([4]), num_values=11), both[1:])


def test_path_draws_are_uniform_and_each_sample_s_own() -> None:
    draws = path_draws(3, positions=range(50), num_views=2, num_values=40)
    assert draws.shape == (100, 40)
    assert 0 < draws.min() < 0.01
    assert 0.99 < draws.max() <= 1
    counts = torch.histc(draws, bins=10, min=0, max=1)
    assert (counts / 400 - 1).abs().max() < 0.2
    alone = path_draws(3, positions=[7], num_views=2, num_values=40)
    assert torch.equal(alone, draws[[7, 57]])
    assert not torch.equal(draws[7], draws[57])
    assert not torch.equal(path_draws(4, positions=[7], num_views=1, num_values=40)[0], draws[7])
