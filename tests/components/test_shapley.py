import pytest
import torch
from reference import shapley as reference

from netprism.components.shapley import all_coalitions, sampled_shapley_values, shapley_values


def random_game(players, seed=0):
    """A table with a value for each coalition, as our `value` and as a function of sets."""
    table = torch.randn(2**players, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    powers = 2 ** torch.arange(players)
    return lambda members: table[(members * powers).sum(1)], lambda inside: float(table[sum(2**i for i in inside)])


@pytest.mark.parametrize("players", [1, 2, 3, 6])
def test_equals_the_definition_by_permutations(players):
    value, worth = random_game(players)
    expected = torch.tensor(reference.shapley_values(worth, players), dtype=torch.float64)
    torch.testing.assert_close(shapley_values(value, players), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("samples", [None, 5])
def test_efficiency(samples):
    value, worth = random_game(12)
    total = worth(set(range(12))) - worth(set())
    assert shapley_values(value, 12, samples).sum().item() == pytest.approx(total, abs=1e-12)


def test_a_dummy_gets_what_it_is_worth_alone_and_twins_get_the_same():
    value, _ = random_game(4)

    def with_a_dummy_and_a_twin(members):
        dummy, twin = members[:, 0], members[:, 1]
        others = torch.cat([(twin | members[:, 2])[:, None], members[:, 3:]], dim=1)  # players 1 and 2 do the same
        return value(others) + 0.25 * dummy

    values = shapley_values(with_a_dummy_and_a_twin, 6)
    assert values[0].item() == pytest.approx(0.25, abs=1e-12)
    assert values[1].item() == pytest.approx(values[2].item(), abs=1e-12)
    assert values[1].item() != pytest.approx(values[3].item(), abs=1e-3)


def test_linear_in_the_game():
    (one, _), (two, _) = random_game(5, seed=1), random_game(5, seed=2)
    both = shapley_values(lambda members: one(members) - 3 * two(members), 5)
    torch.testing.assert_close(both, shapley_values(one, 5) - 3 * shapley_values(two, 5))


def test_the_glove_game():
    # Two left gloves and a right one; a pair is worth 1. The right one joins after a left one in 4 of 6 orders.
    def pairs(members):
        return (members[:, :2].any(1) & members[:, 2]).float()

    torch.testing.assert_close(shapley_values(pairs, 3), torch.tensor([1 / 6, 1 / 6, 4 / 6], dtype=torch.float64))


def test_the_sampled_ones_are_within_their_standard_error():
    value, worth = random_game(6)
    expected = torch.tensor(reference.shapley_values(worth, 6), dtype=torch.float64)
    estimate = sampled_shapley_values(value, 6, samples=2000)
    distance = (estimate.values - expected).abs() / estimate.standard_error
    assert distance.max() < 3.5
    assert distance.mean() > 0.1, "the standard error is not a wide guess"
    few = sampled_shapley_values(value, 6, samples=20, seed=1)
    assert few.standard_error.mean() / estimate.standard_error.mean() == pytest.approx(10, rel=0.4)
    assert torch.equal(shapley_values(value, 6, samples=2000), estimate.values)


def test_values_are_asked_for_once_in_a_batch_without_repeats():
    asked = []

    def value(members):
        asked.append(members)
        return members.sum(1)

    shapley_values(value, 6)
    shapley_values(value, 13)  # more than 12: sampled
    exact, sampled = asked
    assert exact.dtype == torch.bool
    assert exact.shape == (64, 6)
    assert len(sampled) <= 2**13
    assert len(sampled.unique(dim=0)) == len(sampled)


def test_all_coalitions():
    assert all_coalitions(3)[5].tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("game", "message"),
    [
        (lambda: shapley_values(lambda m: m.sum(1), 0), "players is 0; expected 1 or more"),
        (lambda: shapley_values(lambda m: m.sum(1), 3, samples=1), "samples 1"),
        (lambda: shapley_values(lambda m: m, 3), r"value returned shape \(8, 3\); expected \(8,\), one per coalition"),
        (lambda: shapley_values(lambda m: 1 / m.sum(1), 3), r"the value of coalition \[\] is inf"),
        (lambda: shapley_values(lambda m: m[:, 0] * float("nan"), 2), r"the value of coalition \[\] is nan"),
    ],
)
def test_bad_games_are_named(game, message):
    with pytest.raises(ValueError, match=message):
        game()
