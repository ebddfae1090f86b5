"""N ranks train what one rank trains: losses, weights, evaluations, and where a run goes on"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torch.distributed as dist
from transformers import TrainerCallback

from luthier.batching.steps import StepBuilder
from luthier.example import ExampleSet
from luthier.modeling import loader
from tests.launched import values_of_ranks

SPLITS = {1: (3, 4), 2: (3, 2), 3: (2, 2)}
"""Ranks -> batch and accumulation of each, for steps of twelve examples."""

STEPS = 20

WORDS = "maple spruce bow string glue neck belly peg bridge scroll".split()


class Watch(TrainerCallback):
    """Keeps the first weights and what random numbers begin with; may stop after a step."""

    def __init__(self, stops_after: int | None = None) -> None:
        self.stops_after = stops_after

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.first = trained_weights(model)
        self.seed = torch.initial_seed()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.stops_after


def trained_weights(model) -> dict[str, torch.Tensor]:
    return {
        name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad
    }


def train(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several runs of this rank, one after the other in the same group."""
    import luthier
    from luthier.processes.ranks import num_ranks

    dist.init_process_group("gloo")
    found = []
    for config in configs:
        batch, accumulation = SPLITS[num_ranks()]
        split = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
        }
        ours = ("stops_after", "has_idle")
        watch = Watch(config.get("stops_after"))
        known = {name: value for name, value in config.items() if name not in ours}
        with pytest.MonkeyPatch.context() as patch:
            if config.get("has_idle"):
                patch.setattr(loader, "load_model", load_with_an_idle_weight)
            result = luthier.train(known | split, callbacks=[watch])
        dist.barrier()
        found.append(
            {
                "log": result.log_history,
                "metrics": result.metrics,
                "first": watch.first,
                "seed": watch.seed,
                "weights": trained_weights(result.model),
            }
        )
    return found


def load_with_an_idle_weight(*args, load_model=loader.load_model, **options):
    model = load_model(*args, **options)
    model.idle = torch.nn.Parameter(torch.zeros(3))
    return model


def losses(found: dict[str, Any], name: str = "loss") -> list[float]:
    return [record[name] for record in found["log"] if name in record]


def distance(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm."""
    assert weights.keys() == others.keys()
    differences = [(weights[name] - others[name]).norm() for name in weights]
    norms = [each.norm() for each in weights.values()]
    return float(torch.stack(differences).norm() / torch.stack(norms).norm())


def write_rows(file: Path, count: int, first: int = 0) -> Path:
    """Conversations of very different lengths, one of them longer than any micro-batch."""
    rows = [
        {
            "instruction": " ".join(WORDS[: 1 + number % 7]),
            "input": WORDS[number % 10] * (number % 3),
            "output": " ".join(WORDS[number * 3 % 10 :] * (40 if number == 17 else 1 + number % 4)),
        }
        for number in range(first, first + count)
    ]
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture(scope="module")
def settings(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Thirty-seven rows: the last step of an epoch has one example for all ranks."""
    folder = tmp_path_factory.mktemp("rows")
    return {
        "model_name_or_path": str(llama_folder),
        "dataset": str(write_rows(folder / "rows.json", 37)),
        "template": "chatml",
        "do_train": True,
        "lora_target": "all",
        "cutoff_len": 256,
        "tokens_per_micro_batch": 150,
        "learning_rate": 5e-3,
        "max_steps": STEPS,
        "warmup_ratio": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "overwrite_output_dir": True,
        "report_to": "none",
        "plot_loss": False,
    }


@pytest.fixture(scope="module")
def cases(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("more")
    texts = folder / "texts.jsonl"
    texts.write_text(
        "\n".join(
            json.dumps({"text": " ".join(WORDS[number % 5 :] * (1 + number % 6))})
            for number in range(60)
        )
    )
    evaluated = {
        "eval_dataset": [
            str(write_rows(folder / "fewer.json", 2)),
            str(write_rows(folder / "more.json", 31, 9)),
        ],
        "eval_on_each_dataset": True,
        "eval_strategy": "steps",
        "eval_steps": 10,
        "per_device_eval_batch_size": 2,
        "compute_accuracy": True,
    }
    return {
        "lora": settings | evaluated,
        "full": settings | {"finetuning_type": "full", "gradient_checkpointing": True},
        "padded": settings
        | {
            "layout": "padded",
            "gradient_checkpointing": True,
            "use_reentrant_gc": True,
            "max_steps": 4,
        },
        "packed": settings
        | {"dataset": str(texts), "stage": "pt", "cutoff_len": 64, "max_steps": 6},
        "streamed": settings | {"streaming": True, "buffer_size": 16, "max_steps": 7},
        "dropped": settings | {"lora_dropout": 0.5, "max_steps": 2},
        "idle": settings | {"finetuning_type": "full", "has_idle": True, "max_steps": 3},
    }


@pytest.fixture(scope="module")
def trained(cases, tmp_path_factory: pytest.TempPathFactory):
    """Ranks -> case -> what each rank has found."""
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for num_ranks in SPLITS:
        folder = tmp_path_factory.mktemp(f"on-{num_ranks}")
        names = ["lora", "full"] if num_ranks == 3 else list(cases)
        configs = [cases[name] | {"output_dir": str(folder / name)} for name in names]
        ranks = values_of_ranks(train, num_ranks, configs)
        found[num_ranks] = dict(zip(names, zip(*ranks, strict=True), strict=True))
    return found


EQUAL = [(2, name) for name in ("lora", "full", "padded", "packed", "streamed", "idle")]


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "name"), [*EQUAL, (3, "lora"), (3, "full")])
def test_several_ranks_train_what_one_trains(num_ranks, name, trained):
    (alone,) = trained[1][name]
    together = trained[num_ranks][name]

    assert all(losses(each) for each in together)
    for each in together:
        # float32 sums in another order, carried on by up to twenty steps
        assert losses(each) == pytest.approx(losses(alone), rel=1e-5)
        assert losses(each, "grad_norm") == pytest.approx(losses(alone, "grad_norm"), rel=1e-4)
        assert losses(each, "train_loss") == pytest.approx(losses(alone, "train_loss"), rel=1e-5)
        assert distance(alone["weights"], each["weights"]) < 1e-5
    assert max(losses(alone)) > 1.001 * min(losses(alone))
    assert distance(alone["first"], alone["weights"]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_counts_are_those_of_all_ranks(num_ranks, trained):
    (alone,) = trained[1]["lora"]

    for each in trained[num_ranks]["lora"]:
        assert losses(each, "total_tokens") == losses(alone, "total_tokens")
        for name in ("train_tokens", "train_tokens_learned"):
            assert each["metrics"][name] == alone["metrics"][name]
        assert each["metrics"]["total_flos"] == pytest.approx(
            alone["metrics"]["total_flos"], rel=0.1
        )
        assert each["metrics"]["train_micro_batches_per_step"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_every_example_is_evaluated_once(num_ranks, trained):
    (alone,) = trained[1]["lora"]
    names = [name for record in alone["log"] for name in record if name.startswith("eval_")]
    figures = [name for name in dict.fromkeys(names) if name.endswith(("_loss", "_accuracy"))]

    assert len(figures) == 4
    for each in trained[num_ranks]["lora"]:
        for name in figures:
            assert len(losses(each, name)) >= 2
            assert losses(each, name) == pytest.approx(losses(alone, name), rel=1e-5)


@pytest.mark.slow
def test_ranks_begin_and_end_alike_and_draw_their_own_dropout(trained):
    one, other = trained[2]["dropped"]
    (alone,) = trained[1]["dropped"]

    assert distance(one["first"], other["first"]) == 0
    assert distance(one["first"], alone["first"]) == 0
    assert distance(one["weights"], other["weights"]) == 0
    assert one["seed"] != other["seed"]


@pytest.mark.slow
def test_a_run_goes_on_over_ranks(settings, tmp_path):
    dropping = settings | {"lora_dropout": 0.2, "save_steps": 4, "max_steps": 8, "logging_steps": 3}
    dropping |= {"save_strategy": "steps", "overwrite_output_dir": False}
    plain = dropping | {"lora_dropout": 0.0, "logging_steps": 1}
    whole = dropping | {"output_dir": str(tmp_path / "whole"), "save_strategy": "no"}
    cut = dropping | {"output_dir": str(tmp_path / "cut"), "stops_after": 4}
    copies = [plain | {"output_dir": str(tmp_path / name)} for name in ("to-1", "to-3")]
    stopped = [config | {"stops_after": 4} for config in copies]
    unbroken = plain | {"output_dir": str(tmp_path / "unbroken"), "save_strategy": "no"}

    on_two = values_of_ranks(train, 2, [whole, cut, *stopped])
    resumed = values_of_ranks(train, 2, [{**cut, "stops_after": None}])
    on_one = values_of_ranks(train, 1, [unbroken, copies[0]])
    on_three = values_of_ranks(train, 3, [copies[1]])

    for (expected, *_), (found,) in zip(on_two, resumed, strict=True):
        assert losses(found) == losses(expected)
        assert distance(found["weights"], expected["weights"]) == 0
    expected, found = on_one[0]
    for each in (found, *(rank[0] for rank in on_three)):
        assert losses(each) == pytest.approx(losses(expected), rel=1e-5)
        assert distance(expected["weights"], each["weights"]) < 1e-5


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_every_example_of_a_step_is_on_one_rank(layout, num_ranks):
    table = {
        "input_ids": [[5, 6, 7, 100 + number] * (1 + number % 5) for number in range(11)],
        "labels": [[5, 6, 7, 100 + number] * (1 + number % 5) for number in range(11)],
        "num_units": [3 + number % 5 for number in range(11)],
    }

    dataset = datasets.Dataset.from_dict(table)
    for indices in ([*range(11)], [3], [7, 1]):
        steps = [
            StepBuilder(ExampleSet(dataset), 0, 24, rank, num_ranks, layout, layout == "tree")(
                indices
            )
            for rank in range(num_ranks)
        ]

        targets = sorted(
            target
            for step in steps
            for each in step.micro_batches
            for target in each.targets.tolist()
        )
        assert targets == sorted(t for each in indices for t in table["labels"][each][1:])
        assert len({len(step.micro_batches) for step in steps}) == 1
        assert len({(step.num_units, step.num_tokens, step.num_examples) for step in steps}) == 1
        assert sum(len(table["labels"][each]) for each in indices) == steps[0].num_tokens
