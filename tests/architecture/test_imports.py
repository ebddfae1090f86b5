from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import house

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate")


def build(folder: Path, files: dict[str, str]) -> Path:
    source = folder / "luthier"
    for name, text in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return source


def test_every_arrow_leads_down():
    wrong = house.wrong_arrows()

    assert not wrong, "\n".join(wrong)


def test_no_files_lead_back_to_themselves():
    circles = house.circles()

    assert not circles, "\n".join(circles)


def test_the_core_does_without_the_rooms_at_its_edge():
    known = house.arrows_to_the_edge()

    assert not known, "\n".join(known)


def test_an_arrow_to_the_edge_is_told(tmp_path: Path):
    text = "from luthier.fused.fuse import fuse\n"
    files = {"fused/fuse.py": "", "training/run.py": text, "training/loop.py": text}

    (wrong,) = house.arrows_to_the_edge(build(tmp_path, files))

    assert "training/loop.py" in wrong


def test_every_room_has_its_floor():
    rooms = {house.room_of(file) for file in house.modules()}

    assert rooms <= set().union(*house.FLOORS)


@pytest.mark.parametrize(
    "text",
    [
        "from luthier.training.run import run\n",
        "import luthier.training.run\n",
        "def load():\n    from luthier.training import run\n",
        "if TYPE_CHECKING:\n    from luthier.training.run import run\n",
        'importlib.import_module("luthier.training.run")\n',
    ],
)
def test_an_arrow_up_is_told_with_both_files(text: str, tmp_path: Path):
    source = build(tmp_path, {"data/encode.py": text, "training/run.py": ""})

    (wrong,) = house.wrong_arrows(source)

    assert "data/encode.py:" in wrong
    assert "training/run.py" in wrong


@pytest.mark.parametrize("name", ["serving", "training"])
def test_serving_and_training_do_not_know_each_other(name: str, tmp_path: Path):
    other = {"serving": "training", "training": "serving"}[name]
    text = f"from luthier.{other}.thing import it\n"
    source = build(tmp_path, {f"{name}/place.py": text, f"{other}/thing.py": ""})

    assert len(house.wrong_arrows(source)) == 1


def test_only_the_version_is_read_through_the_front_door(tmp_path: Path):
    files = {
        "__init__.py": "",
        "training/report.py": "from luthier import __version__\n",
        "training/run.py": "from luthier import train\n",
    }

    (wrong,) = house.wrong_arrows(build(tmp_path, files))

    assert "training/run.py" in wrong


def test_a_circle_in_a_room_is_told_with_its_files(tmp_path: Path):
    files = {
        "data/one.py": "from luthier.data.two import it\n",
        "data/two.py": "def later():\n    from luthier.data.three import it\n",
        "data/three.py": "import luthier.data.one\n",
    }

    (circle,) = house.circles(build(tmp_path, files))

    assert all(name in circle for name in files)


@pytest.mark.parametrize(
    "start",
    [
        "import luthier",
        "import luthier.cli",
        "import luthier.cli; luthier.cli.main(['--help'])",
        "import luthier.cli; luthier.cli.main(['train', '--help'])",
    ],
)
def test_the_door_opens_without_the_heavy_libraries(start: str):
    code = f"{start}\nimport sys\nprint('loaded:', *sorted({HEAVY!r} & sys.modules.keys()))"
    code = code.replace(repr(HEAVY), repr(set(HEAVY)))

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "loaded:"
