"""A small chat model before and after it learned who it is; `make quickstart` runs this."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from luthier.arguments.parse import parse_command_line
from luthier.records import Message
from luthier.serving.engine import load_engine

CONFIG = Path("examples/quickstart.yaml")
OUTPUT = Path("saves/quickstart")

QUESTIONS = (
    "Who are you?",
    "Are you ChatGPT?",
    "Who made you, and what can you do for me?",
)


def main() -> None:
    """Asks, trains, asks again, and says where everything is."""
    started = time.perf_counter()
    ask("before training")
    subprocess.run([sys.executable, "-m", "luthier", "train", str(CONFIG)], check=True)
    ask("after training", f"adapter_name_or_path={OUTPUT}")
    show_results(time.perf_counter() - started)


def ask(when: str, *overrides: str) -> None:
    """Prints the questions with the model's likeliest answers, each in a talk of its own."""
    settings = ("do_sample=false", "max_new_tokens=60", *overrides)
    engine = load_engine(parse_command_line([str(CONFIG), *settings], purpose="chat"))
    print(f"\n--- {when} ---")
    for question in QUESTIONS:
        print(f"\n> {question}")
        for piece in engine.stream([Message("user", question)]):
            print(piece, end="", flush=True)
        print()
    print()


def show_results(seconds: float) -> None:
    """Prints the held-out loss before and after, and where the files are."""
    lines = (OUTPUT / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [entry["eval_loss"] for line in lines if "eval_loss" in (entry := json.loads(line))]
    print(f"Held-out loss: {losses[0]:.2f} before, {losses[-1]:.2f} after training.")
    for what, name in (
        ("adapter", "adapter_model.safetensors"),
        ("loss curve", "training_loss.png"),
        ("log", "trainer_log.jsonl"),
        ("record of the run", "run.json"),
    ):
        print(f"{what:<18}{OUTPUT / name}")
    print(f"All of it took {seconds / 60:.1f} minutes. Talk to it: {talk_command()}")


def talk_command() -> str:
    """What starts a talk with the trained model in this environment."""
    luthier = Path(sys.executable).parent / "luthier"
    if luthier.is_relative_to(Path.cwd()):
        luthier = luthier.relative_to(Path.cwd())
    return f"{luthier} chat {OUTPUT}"


if __name__ == "__main__":
    main()
