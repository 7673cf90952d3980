"""The definition of Shapley values, by going through all permutations."""

from itertools import permutations


def shapley_values(worth, players):
    """Mean over all permutations of what a player adds to those before it.

    Args:
        worth: Function of a frozenset of players.
        players: Number of players.
    """
    totals = [0.0] * players
    orders = list(permutations(range(players)))
    for order in orders:
        inside = frozenset()
        for player in order:
            totals[player] += worth(inside | {player}) - worth(inside)
            inside |= {player}
    return [total / len(orders) for total in totals]
