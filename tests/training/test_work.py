"""what a run has computed, counted step by step"""

from luthier.batching.batch import Step
from luthier.training.work import Work
from tests.rows import build_tree, pad

ROWS = [
    {"input_ids": [5, 9, 17, 4], "labels": [-100, -100, 17, 4]},
    {"input_ids": [5, 9], "labels": [-100, 9]},
]


def work_of(*micro_batches) -> Work:
    work = Work()
    work.add(Step(micro_batches, num_units=3, num_tokens=6, num_examples=2))
    return work


def test_padding_is_computed_and_not_real():
    work = work_of(pad(ROWS, 0))

    assert work == Work(steps=1, tokens=6, computed=8, learned=3, micro_batches=1)
    assert "8 computed (133 %, 33 % padding)" in work.describe("padded")


def test_a_shared_prefix_is_computed_once():
    work = work_of(build_tree(ROWS, share_prefixes=True), build_tree([], share_prefixes=True))

    assert (work.tokens, work.learned, work.micro_batches) == (6, 3, 2)
    assert work.computed < 6 + 2
    assert "shared) in 2 micro-batches a step, layout tree" in work.describe("tree")


def test_a_run_without_steps_has_numbers_too():
    assert Work().metrics()["train_micro_batches_per_step"] == 0
    assert Work().describe("tree")
