import json
import pickle

import pydantic
import pytest

from luthier.arguments.parse import parse_dict
from luthier.arguments.record import MASK

RUN = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "dataset": "d, e"}


def test_arguments_are_frozen():
    arguments = parse_dict(RUN)

    with pytest.raises(pydantic.ValidationError):
        arguments.model.model_name_or_path = "other"
    with pytest.raises(AttributeError):
        arguments.model = None


def test_what_was_given_can_be_published_without_secrets():
    arguments = parse_dict({**RUN, "hf_hub_token": "s3cret", "hub_token": "s3cret"})

    public = arguments.public()

    assert json.loads(json.dumps(public)) == {
        "model_name_or_path": "m",
        "output_dir": "o",
        "do_train": True,
        "dataset": ["d", "e"],
        "hf_hub_token": MASK,
        "hub_token": MASK,
    }
    assert "s3cret" not in repr(arguments)


def test_published_arguments_give_the_same_run_again():
    arguments = parse_dict({**RUN, "learning_rate": "1e-4", "no_cuda": True})

    again = parse_dict(arguments.public())

    assert again.flat() == arguments.flat()


def test_arguments_travel_between_processes():
    arguments = parse_dict(RUN)

    assert pickle.loads(pickle.dumps(arguments)) == arguments
