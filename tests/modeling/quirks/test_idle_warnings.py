"""idle warnings are silent; all others are heard"""

from __future__ import annotations

import logging
import warnings

import pytest
from peft import LoraConfig, get_peft_model

from luthier.modeling.quirks.checkpointing_name import IS_RENAMED
from luthier.modeling.quirks.idle_warnings import LOG_LINES, silence_idle_warnings
from tests import tiny


def test_putting_an_adapter_on_a_model_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silence_idle_warnings()

        get_peft_model(tiny.make_llama(), LoraConfig(target_modules=["q_proj"]))


@pytest.mark.skipif(not IS_RENAMED, reason="this release of transformers has only the old name")
def test_the_warning_about_the_old_name_is_still_made_by_the_libraries():
    """When it is not, its line in the table can go."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
            get_peft_model(tiny.make_llama(), LoraConfig(target_modules=["q_proj"]))


def test_other_warnings_are_heard():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silence_idle_warnings()
        with pytest.raises(FutureWarning, match="something else"):
            warnings.warn("something else is deprecated", FutureWarning, stacklevel=1)

    logger, begin = LOG_LINES[0]
    quiet = logging.LogRecord(logger, logging.WARNING, "", 0, f"{begin} that differ", None, None)
    loud = logging.LogRecord(logger, logging.WARNING, "", 0, "something else", None, None)
    assert not logging.getLogger(logger).filter(quiet)
    assert logging.getLogger(logger).filter(loud)
