"""full marks everything"""

from __future__ import annotations

from luthier.arguments.choices import ADAPTERS
from tests import tiny
from tests.modeling.making import make_arguments


def test_every_parameter_learns():
    model = ADAPTERS.get("full").prepare(
        tiny.make_llama().requires_grad_(False), make_arguments(), is_trainable=True
    )

    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_methods_are_known_by_name():
    assert ADAPTERS.names() == ["freeze", "full", "lora", "oft"]
