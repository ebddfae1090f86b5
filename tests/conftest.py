"""what every test may ask for: tiny models in folders, and quiet, single-threaded torch"""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# torch's threads wait at barriers spinning: on busy cores two of them take fifty times longer
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest

# how long an example takes says how busy the machine is, nothing of the code
hypothesis.settings.register_profile("luthier", deadline=None)
hypothesis.settings.load_profile("luthier")

# a shell that starts a suite behind itself has it and all its processes ignore these
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Data encoded in tests goes with them; only matplotlib keeps its list of fonts."""
    os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from tests import tiny

    return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved two-layer Llama with its tokenizer."""
    from tests import tiny

    return tiny.save(tmp_path_factory.mktemp("models") / "tiny-llama", tiny.make_llama())


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved two-layer GPT-2 with its tokenizer."""
    from tests import tiny

    return tiny.save(tmp_path_factory.mktemp("models") / "tiny-gpt2", tiny.make_gpt2())
