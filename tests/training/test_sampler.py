"""Which examples come in which step."""

from collections import Counter

import pytest

from hnkernels.training.sampler import Sampler, generator_of

GROUPS = ["wide"] * 5 + ["tall"] * 3 + ["wide"] * 2 + ["tall"]  # the last three for prior preservation
OWN, PRIOR = range(8), [8, 9, 10]


def epoch(sampler, number=0):
    """The batches of an epoch."""
    first = number * sampler.steps_per_epoch
    return [batch for step in range(sampler.steps_per_epoch) for batch in sampler.step(first + step)]


def sampler(batch_size=2, accumulation=1, seed=0, **options):
    return Sampler(GROUPS, OWN, batch_size, accumulation, seed, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 20])
@pytest.mark.parametrize("accumulation", [1, 2, 100])
def test_an_epoch_has_every_example_once_in_batches_of_one_group(batch_size, accumulation):
    one = sampler(batch_size, accumulation)
    for number in range(3):
        batches = epoch(one, number)
        assert sorted(sum(batches, [])) == list(OWN)  # noqa: RUF017
        assert all(len({GROUPS[i] for i in batch}) == 1 and len(batch) <= batch_size for batch in batches)
    assert all(1 <= len(one.step(i)) <= accumulation for i in range(3 * one.steps_per_epoch))


def test_examples_come_as_often_as_they_are_repeated():
    repeats = [1, 2, 3, 1, 1, 4, 1, 1, 7, 7, 7]
    for number in range(2):
        times = Counter(i for batch in epoch(sampler(repeats=repeats), number) for i in batch)
        assert times == {i: repeats[i] for i in OWN}


def test_a_step_follows_from_seed_and_number_alone():
    one, other = sampler(seed=1), sampler(seed=1)
    forwards = [one.step(i) for i in range(20)]
    assert [other.step(i) for i in reversed(range(20))] == forwards[::-1]
    assert [sampler(seed=2).step(i) for i in range(20)] != forwards
    assert epoch(one, 0) != epoch(one, 1)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_every_batch_has_as_many_for_prior_preservation_of_its_own_group(batch_size):
    one = sampler(batch_size, prior=PRIOR)
    assert one.steps_per_epoch == sampler(batch_size).steps_per_epoch
    for number in range(3):
        times = Counter()
        for batch in epoch(one, number):
            own, prior = batch[: len(batch) // 2], batch[len(batch) // 2 :]
            assert set(own) <= set(OWN)
            assert set(prior) <= set(PRIOR)
            assert len({GROUPS[i] for i in batch}) == 1
            times.update(prior)
        assert times == {8: times[8], 9: 5 - times[8], 10: 3}
        assert times[8] in (2, 3)  # five wide ones and two for them: as evenly as may be


def test_a_group_without_any_for_prior_preservation_is_used_without():
    batches = epoch(sampler(4, prior=[10]))
    assert sorted(len(batch) for batch in batches if GROUPS[batch[0]] == "wide") == [1, 4]
    (tall,) = [batch for batch in batches if GROUPS[batch[0]] == "tall"]
    assert tall[3:] == [10] * 3


def test_the_own_examples_come_in_the_same_order_with_and_without_prior_preservation():
    with_them = [[i for i in batch if i in OWN] for batch in epoch(sampler(prior=PRIOR))]
    assert with_them == epoch(sampler())


def test_generators_are_independent_of_each_other():
    drawn = {generator_of(*key).initial_seed() for key in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", 1)]}
    assert len(drawn) == 5
    assert generator_of(-(2**63), "a").initial_seed() == generator_of(-(2**63), "a").initial_seed()
