"""No network: a run whose files are here asks nobody for anything, and tells nobody of itself"""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests import tiny
from tests.launched import LOCAL, run_command

WITHOUT_NETWORK = """
import ipaddress, json, os, socket, sys, traceback

asked = []

def is_here(address):
    host = address[0] if isinstance(address, tuple) else address
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in (None, "", "localhost") or isinstance(address, (str, bytes))

def refuse(name, place):
    real = getattr(socket.socket, name)

    def guarded(self, *args):
        address = args[place]
        if self.family != socket.AF_UNIX and not is_here(address):
            asked.append([name, str(address), "".join(traceback.format_stack(limit=12))])
            raise OSError(101, "no network in this test")
        return real(self, *args)

    setattr(socket.socket, name, guarded)

for name, place in (("connect", 0), ("connect_ex", 0), ("sendto", -1)):
    refuse(name, place)

real_getaddrinfo = socket.getaddrinfo

def getaddrinfo(host, *args, **options):
    if host not in (None, "", "localhost", "127.0.0.1", "::1", b"localhost"):
        asked.append(["getaddrinfo", str(host), "".join(traceback.format_stack(limit=12))])
        raise socket.gaierror(-3, "no network in this test")
    return real_getaddrinfo(host, *args, **options)

socket.getaddrinfo = getaddrinfo

def lookup(real):
    return lambda host: getaddrinfo(host, 0) and real(host)

for name in ("gethostbyname", "gethostbyname_ex"):
    setattr(socket, name, lookup(getattr(socket, name)))

if sys.argv[1] == "try":
    for call in (
        lambda: socket.create_connection(("example.org", 443), 1),
        lambda: socket.socket().connect(("192.0.2.1", 443)),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
    ):
        try:
            call()
        except OSError:
            pass
    code = 0
else:
    from luthier.cli import main
    code = main(sys.argv[2:])
with open(sys.argv[1] if sys.argv[1] != "try" else sys.argv[2], "w") as file:
    json.dump(asked, file)
sys.exit(code)
"""

WORDS = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
)
"""Variables that would keep libraries quiet; here none of them helps."""


@pytest.fixture
def script(tmp_path):
    """A program that runs luthier where every way out is watched, and writes down who took one."""
    file = tmp_path / "without_network.py"
    file.write_text(WITHOUT_NETWORK)
    return file


def test_the_watch_sees_every_way_out(script, tmp_path):
    ended = run_command([sys.executable, script, "try", tmp_path / "asked.json"])

    assert ended.exit_code == 0, ended.stderr
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert [one[0] for one in asked] == ["getaddrinfo", "connect", "sendto"]


@pytest.mark.slow
def test_a_run_with_local_files_asks_nobody(script, tmp_path, monkeypatch):
    for name in WORDS:
        monkeypatch.delenv(name, raising=False)
    tiny.save(tmp_path / "model", tiny.make_llama())
    rows = [{"instruction": f"Count to {n}.", "output": "1 2 3"} for n in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "run.json").write_text(
        json.dumps(
            {
                "model_name_or_path": str(tmp_path / "model"),
                "dataset": str(tmp_path / "rows.json"),
                "template": "chatml",
                "do_train": True,
                "do_eval": True,
                "do_predict": True,
                "predict_with_generate": True,
                "max_new_tokens": 2,
                "val_size": 2,
                "lora_rank": 2,
                "max_steps": 2,
                "save_steps": 1,
                "plot_loss": True,
                "use_cpu": True,
                "output_dir": str(tmp_path / "run"),
                "cache_dir": str(tmp_path / "cache"),
            }
        )
    )
    homes = {"HF_HOME": str(tmp_path / "hub"), "XDG_CACHE_HOME": str(tmp_path / "home")}

    ended = run_command(
        [sys.executable, script, tmp_path / "asked.json", "train", tmp_path / "run.json"],
        environment={**LOCAL, **homes, "MPLCONFIGDIR": os.environ["MPLCONFIGDIR"]},
    )

    assert ended.exit_code == 0, ended.stderr
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert asked == [], "\n".join(asked[0]) if asked else ""
    assert (tmp_path / "run/adapter_model.safetensors").exists()
    assert (tmp_path / "run/generated_predictions.jsonl").exists()
