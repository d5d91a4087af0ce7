from __future__ import annotations

import pytest

from nearcast.errors import SpecError
from nearcast.runners.array_index import WorkShare, find_share

KUBERNETES = {"JOB_COMPLETION_INDEX": "3", "NEARCAST_WORKERS": "40"}
BATCH = {"AWS_BATCH_JOB_ARRAY_INDEX": "0", "AWS_BATCH_JOB_ARRAY_SIZE": "8"}
SLURM = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "5", "SLURM_ARRAY_TASK_MIN": "1"}
CLOUD_RUN = {"CLOUD_RUN_TASK_INDEX": "9", "CLOUD_RUN_TASK_COUNT": "10"}


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, WorkShare(0, 1)),
        (KUBERNETES, WorkShare(3, 40)),
        (BATCH, WorkShare(0, 8)),
        (SLURM, WorkShare(4, 5)),
        (SLURM | {"SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_ID": "7"}, WorkShare(3, 5)),
        (CLOUD_RUN, WorkShare(9, 10)),
        ({"SLURM_ARRAY_TASK_ID": "", "NEARCAST_WORKERS": "1"}, WorkShare()),
    ],
)
def test_index_and_count_come_from_the_variables_of_the_scheduler(environment, share):
    assert find_share(None, None, environment) == share


def test_options_come_before_variables():
    assert find_share(1, 2, KUBERNETES) == WorkShare(1, 2)
    assert find_share(1, None, {"NEARCAST_WORKERS": "7"}) == WorkShare(1, 7)


def test_an_option_that_is_missing_comes_from_the_variables():
    assert find_share(None, 7, {"JOB_COMPLETION_INDEX": "3"}) == WorkShare(3, 7)
    assert find_share(None, 7, KUBERNETES) == WorkShare(3, 7)
    assert find_share(None, 7, SLURM) == WorkShare(4, 7)
    assert find_share(5, None, BATCH) == WorkShare(5, 8)
    assert find_share(None, 1, KUBERNETES) == WorkShare()  # the only worker does everything


def test_a_number_of_workers_that_is_below_the_index_of_the_scheduler_is_refused():
    with pytest.raises(SpecError, match=r"must be in 0\.\.2 for 3 workers, got 3 \(JOB_COMPLETION_INDEX\)"):
        find_share(None, 3, KUBERNETES)


@pytest.mark.parametrize(
    ("index", "count", "environment", "words"),
    [
        (3, None, {}, r"the number of workers is unknown; give --of, or set NEARCAST_WORKERS"),
        (None, None, {"JOB_COMPLETION_INDEX": "3"}, r"is 3 \(JOB_COMPLETION_INDEX\), and the number of workers is unk"),
        (None, 4, {}, r"the index of this one is unknown; give --index"),
        (None, None, {"NEARCAST_WORKERS": "4"}, r"give --index"),
        (4, 4, {}, r"must be in 0\.\.3 for 4 workers, got 4"),
        (-1, 4, {}, r"must be in 0\.\.3"),
        (None, None, {"SLURM_ARRAY_TASK_ID": "x"}, r"SLURM_ARRAY_TASK_ID must be a whole number, got 'x'"),
        (None, None, KUBERNETES | {"NEARCAST_WORKERS": "many"}, r"NEARCAST_WORKERS must be a whole number"),
        (None, None, KUBERNETES | {"JOB_COMPLETION_INDEX": "40"}, r"must be in 0\.\.39"),
        (0, 0, {}, "number of workers must be at least 1, got 0"),
    ],
)
def test_an_index_without_a_fitting_count_is_refused(index, count, environment, words):
    with pytest.raises(SpecError, match=words):
        find_share(index, count, environment)


@pytest.mark.parametrize(
    ("indexes", "step", "irregular"),
    [((0, 3, 7), 1, True), ((0, 1, 3), 1, True), ((1, 3, 5), 2, False), ((4, 5, 6), 1, False), ((2, 5), 2, True)],
)
def test_irregular_indexes_of_slurm_are_refused_by_every_worker_unless_options_say_which_it_is(
    indexes, step, irregular
):
    facts = {"COUNT": len(indexes), "MIN": indexes[0], "MAX": indexes[-1], "STEP": step}
    variables = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in facts.items()}
    for number, index in enumerate(indexes):
        environment = variables | {"SLURM_ARRAY_TASK_ID": str(index)}
        assert find_share(index, 8, environment) == WorkShare(index, 8)
        if irregular:
            with pytest.raises(SpecError, match=r"indexes of the array job are irregular, got SLURM_ARRAY_TASK_ID"):
                find_share(None, None, environment)
        else:
            assert find_share(None, None, environment) == WorkShare(number, len(indexes))


def test_the_shares_of_all_workers_are_all_tasks_once():
    tasks = list(range(23))
    parts = [WorkShare(i, 4).of(tasks) for i in range(4)]
    assert sorted(number for part in parts for number in part) == tasks
    assert all(number % 4 == i for i, part in enumerate(parts) for number in part)


def test_a_worker_does_its_own_tasks_first_and_then_those_of_others_from_the_end():
    assert WorkShare(1, 3).order(list(range(7))) == [1, 4, 6, 5, 3, 2, 0]
    assert WorkShare().order([1, 2, 3]) == [1, 2, 3]
