"""Kills around an instance with a store of its own: the database inside stays right."""

from random import Random, randrange

import pytest
from support.incus import Incus
from support.own_kills import Victim

pytestmark = pytest.mark.isolated

KILLS = 4


def test_kills_at_random_moments_leave_a_database_that_is_right(incus: Incus) -> None:
    seed = randrange(1 << 20)
    print(f"seed {seed}")
    victim = Victim(incus, Random(seed))
    for _ in range(KILLS):
        print(victim.kill_something())
