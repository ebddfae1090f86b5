"""an epoch as optimizer steps: the order others take, nothing repeated, nothing lost"""

import os
import signal
import sys
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, RandomSampler

from luthier.batching.order import LengthGroupedOrder, SequentialOrder, ShuffledOrder
from luthier.batching.prefixes import MIN_SAVED
from luthier.batching.steps import StepBuilder, StepLoader, StepLoaders, StepSampler, let_reader_go
from luthier.example import ExampleSet
from tests.stages.made import make_arguments


def make_dataset(num_rows: int) -> datasets.Dataset:
    rows = [[1 + (index * 7 + k) % 50 for k in range(2 + index % 9)] for index in range(num_rows)]
    return datasets.Dataset.from_dict(
        {
            "input_ids": rows,
            "labels": rows,
            "num_tokens": [len(row) for row in rows],
            "num_units": [len(row) - 1 for row in rows],
        }
    )


def test_a_shuffled_epoch_has_the_order_of_a_loader_that_accelerate_prepared():
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=42)
    )
    rows = list(range(23))
    loader = accelerator.prepare(DataLoader(rows, batch_size=1, sampler=RandomSampler(rows)))
    order = ShuffledOrder(len(rows), seed=42)

    for epoch in (0, 1, 2):
        loader.set_epoch(epoch)
        order.set_epoch(epoch)
        assert list(order) == [int(batch[0]) for batch in loader]


@pytest.mark.parametrize("world_size", [1, 3])
def test_an_epoch_holds_every_token_once_over_all_ranks(world_size):
    dataset = make_dataset(29)
    tokens = units = 0
    for rank in range(world_size):
        sampler = StepSampler(ShuffledOrder(29, seed=1), examples_per_step=8)
        builder = StepBuilder(ExampleSet(dataset), 0, 20, rank, world_size)
        steps = list(StepLoader(sampler, builder))
        tokens += sum(batch.num_tokens for step in steps for batch in step.micro_batches)
        units += sum(batch.targets.numel() for step in steps for batch in step.micro_batches)
        assert len(steps) == len(sampler) == 4
        assert [step.num_examples for step in steps] == [8, 8, 8, 5]
        assert sum(step.num_tokens for step in steps) == sum(dataset["num_tokens"])
        assert sum(step.num_units for step in steps) == sum(dataset["num_units"])
    assert tokens == sum(dataset["num_tokens"])
    assert units == sum(dataset["num_units"])


@pytest.mark.parametrize(("layout", "share"), [("padded", False), ("tree", False), ("tree", True)])
def test_every_layout_reads_the_same_learned_tokens(layout, share):
    dataset = make_dataset(29)
    builder = StepBuilder(ExampleSet(dataset), 0, 20, layout=layout, share_prefixes=share)

    step = builder([4, 20, 13, 4])

    targets = [token for batch in step.micro_batches for token in batch.targets.tolist()]
    assert sorted(targets) == sorted(
        token for index in (4, 20, 13, 4) for token in dataset[index]["labels"][1:]
    )
    assert all((batch.attention_mask is None) == (layout == "tree") for batch in step.micro_batches)


def test_a_tree_computes_real_tokens_only_and_shared_ones_once():
    rows = [[*range(1, 21), 50 + index] for index in range(6)]
    dataset = datasets.Dataset.from_dict(
        {"input_ids": rows, "labels": rows, "num_tokens": [21] * 6, "num_units": [20] * 6}
    )

    packed, shared = (
        StepBuilder(ExampleSet(dataset), 0, 64, layout="tree", share_prefixes=share)(range(6))
        for share in (False, True)
    )

    assert (packed.num_computed, len(packed.micro_batches)) == (126, 2)
    assert (shared.num_computed, len(shared.micro_batches)) == (26, 1)
    assert packed.num_tokens == shared.num_tokens == 126


@pytest.mark.parametrize("layout", ["padded", "tree"])
def test_a_rank_without_examples_computes_one_unlearned_token(layout):
    builder = StepBuilder(ExampleSet(make_dataset(9)), 0, 20, rank=2, world_size=3, layout=layout)

    step = builder([1, 2])

    assert step.num_computed == 1
    assert step.micro_batches[0].targets.numel() == 0
    assert step.num_examples == 2


def test_drop_last_leaves_out_what_does_not_fill_a_batch_of_every_rank():
    sampler = StepSampler(SequentialOrder(29), examples_per_step=8, multiple=4)

    groups = list(sampler)

    assert [len(group) for group in groups] == [8, 8, 8, 4]
    assert [index for group in groups for index in group] == list(range(28))


@pytest.mark.parametrize("layout", ["padded", "tree"])
def test_workers_change_nothing(layout):
    dataset = make_dataset(13)
    plain, worked = (
        [
            step.micro_batches[0].input_ids.tolist()
            for step in StepLoader(
                StepSampler(ShuffledOrder(13, seed=5), 4),
                StepBuilder(ExampleSet(dataset), 0, 1000, layout=layout, share_prefixes=True),
                num_workers=workers,
            )
        ]
        for workers in (0, 2)
    )

    assert plain == worked


def test_length_grouping_keeps_every_example_and_depends_on_the_epoch():
    lengths = [3, 9, 1, 7, 5, 8, 2, 6, 4, 10]
    order = LengthGroupedOrder(lengths, group_size=2, seed=0)

    first = list(order)
    order.set_epoch(1)

    assert sorted(first) == list(range(10))
    assert list(order) != first


def test_a_worker_is_silent_about_a_reader_that_has_gone_and_about_nothing_else(
    monkeypatch, capsys
):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    let_reader_go()

    for gone in (ConnectionResetError("peer"), BrokenPipeError("peer"), EOFError("peer")):
        sys.excepthook(type(gone), gone, None)
    silent = capsys.readouterr().err
    sys.excepthook(ValueError, ValueError("a real fault"), None)

    assert silent == ""
    assert "a real fault" in capsys.readouterr().err


def test_workers_go_on_when_all_processes_of_a_run_are_asked_to_stop():
    sampler = StepSampler(SequentialOrder(40), 4)
    builder = StepBuilder(ExampleSet(make_dataset(40)), 0, 20)
    steps = iter(StepLoader(sampler, builder, num_workers=2))

    for number in (signal.SIGINT, signal.SIGTERM):  # at once: they may not have begun to work
        for worker in steps._workers:
            os.kill(worker.pid, number)

    assert sum(step.num_examples for step in steps) == 40


def make_packed(num_rows: int) -> datasets.Dataset:
    """Rows of one to four sequences; the first token of a sequence is not learned."""
    lengths = [
        [2 + (index + part) % 7 for part in range(1 + index % 4)] for index in range(num_rows)
    ]
    rows = [
        [1 + (index * 7 + k) % 50 for k in range(sum(each))] for index, each in enumerate(lengths)
    ]
    return datasets.Dataset.from_dict(
        {
            "input_ids": rows,
            "labels": rows,
            "packed": lengths,
            "num_tokens": [len(row) for row in rows],
            "num_units": [sum(each) - len(each) for each in lengths],
        }
    )


@pytest.mark.parametrize(("layout", "share"), [("padded", False), ("tree", False), ("tree", True)])
def test_the_sequences_of_a_packed_example_stand_for_themselves(layout, share):
    dataset = make_packed(11)
    builder = StepBuilder(ExampleSet(dataset), 0, 16, layout=layout, share_prefixes=share)

    step = builder(range(11))

    assert step.num_examples == 11
    assert step.num_tokens == sum(dataset["num_tokens"])
    assert step.num_units == sum(dataset["num_units"])
    assert sum(len(batch.ends) for batch in step.micro_batches) == sum(map(len, dataset["packed"]))
    assert sum(batch.targets.numel() for batch in step.micro_batches) == step.num_units
    for batch in step.micro_batches:
        starts = sum(depth == 0 for depth in batch.depths().tolist())
        assert starts == len(batch.ends) or share


def test_a_padded_step_of_packed_examples_keeps_the_budget():
    dataset = make_packed(30)

    step = StepBuilder(ExampleSet(dataset), 0, 16)(range(30))

    assert all(batch.num_computed <= 16 for batch in step.micro_batches)
    assert step.num_computed < 1.2 * step.num_tokens


def make_pairs(num_rows: int) -> datasets.Dataset:
    """Rows of two sequences of unlike lengths that begin with a prompt of their own."""
    lengths = [[14 + index % 5, 12 + index % 7] for index in range(num_rows)]
    prompts = [[1 + index % 4, 2 + index % 3, *range(10)] for index in range(num_rows)]
    rows = [
        [
            token
            for part, length in enumerate(each)
            for token in [*prompt, *[20 + part] * (length - len(prompt))]
        ]
        for prompt, each in zip(prompts, lengths, strict=True)
    ]
    return datasets.Dataset.from_dict(
        {
            "input_ids": rows,
            "labels": rows,
            "lengths": lengths,
            "num_tokens": [len(row) for row in rows],
            "num_units": [1] * num_rows,
            "sequence_margin": [[float(index), -float(index)] for index in range(num_rows)],
        }
    )


@pytest.mark.parametrize(("layout", "share"), [("padded", False), ("tree", False), ("tree", True)])
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_sequences_of_an_example_share_a_micro_batch(layout, share, world_size):
    dataset = make_pairs(13)
    found = []
    for rank in range(world_size):
        builder = StepBuilder(ExampleSet(dataset), 0, 64, rank, world_size, layout, share)
        step = builder(range(13))

        assert (step.num_examples, step.num_units) == (13, 13)
        for batch in step.micro_batches:
            assert batch.owners[batch.sequences].tolist() == sorted(
                batch.owners[batch.sequences].tolist()
            )
            if batch.examples:
                assert batch.owners.bincount().tolist() == [2] * len(batch.examples)
                numbers = [sign * each.row for each in batch.examples for sign in (1, -1)]
                assert batch.sequence_numbers["margin"].tolist() == numbers
            found += [each.row for each in batch.examples]

    assert sorted(found) == list(range(13))


@pytest.mark.parametrize("budget", [1, 100])
def test_the_largest_micro_batch_is_the_largest_that_is_built(budget: int):
    dataset = ExampleSet(make_pairs(13))
    for layout, share in (("padded", False), ("tree", False), ("tree", True)):
        arguments = make_arguments("dpo", tokens_per_micro_batch=budget)
        args: Any = SimpleNamespace(world_size=1, device=torch.device("cpu"))
        loaders = StepLoaders(arguments, args, 0, layout, share)
        builder = StepBuilder(dataset, 0, budget, layout=layout, share_prefixes=share)

        size, longest = loaders.largest_micro_batch(dataset)

        sizes = [each.num_computed for each in builder(range(13)).micro_batches]
        assert longest == max(max(each.lengths) for each in dataset.take(13))
        assert max(sizes) <= size <= max(budget, max(sizes) + MIN_SAVED * share)


def test_a_pair_computes_its_prompt_once():
    dataset = make_pairs(6)

    shared, apart = (
        StepBuilder(ExampleSet(dataset), 0, 1000, layout="tree", share_prefixes=share)(range(6))
        for share in (True, False)
    )

    assert apart.num_computed == apart.num_tokens == sum(dataset["num_tokens"])
    assert shared.num_computed <= apart.num_computed - 6 * 12
