"""what ranks tell each other: all hear the same, and none waits for one that has failed"""

from __future__ import annotations

import pytest
import torch.distributed as dist

from luthier.errors import ModelError
from luthier.modeling import reads
from luthier.processes import ranks
from tests import tiny
from tests.launched import values_of_ranks


def talk():
    """Everything that ranks can say, on one of several ranks."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    said = [
        ranks.rank(),
        ranks.num_ranks(),
        ranks.gather_objects({"rank": rank}),
        ranks.agree_any(rank == 1),
        ranks.agree_all(rank == 1),
        ranks.share_fate(lambda: rank),
    ]
    try:
        ranks.share_fate(lambda: 1 // (1 - rank))
    except (ModelError, ZeroDivisionError) as problem:
        said.append(f"{type(problem).__name__}: {problem}")
    return said


def test_ranks_agree_and_share_what_one_of_them_raises():
    one, other = values_of_ranks(talk, 2)

    both = [2, [{"rank": 0}, {"rank": 1}], True, False]
    assert one[:-2] == [0, *both]
    assert other[:-2] == [1, *both]
    assert (one[-2], other[-2]) == (0, 1)
    division = "ZeroDivisionError: integer division or modulo by zero"
    assert one[-1] == f"ModelError: process 1 could not go on: {division}"
    assert other[-1].startswith("ZeroDivisionError")


def test_one_process_alone_answers_for_itself():
    assert (ranks.rank(), ranks.num_ranks(), ranks.gather_objects("I")) == (0, 1, ["I"])
    assert ranks.agree_any(True)
    assert not ranks.agree_all(False)
    with pytest.raises(ZeroDivisionError):
        ranks.share_fate(lambda: 1 // 0)


def find_form():
    dist.init_process_group("gloo")
    model = tiny.make_llama(vocab_size=97)
    if dist.get_rank() == 1:
        model.get_output_embeddings().register_forward_hook(lambda *parts: parts[-1] ** 3)
    ids = model.dummy_inputs["input_ids"]
    return reads.logit_form(model, ids)


def test_logits_are_asked_for_when_one_rank_finds_them_unusual():
    assert values_of_ranks(find_form, 2) == [None, None]
