"""free memory is bounded by containers; peaks are a data sheet's or measured"""

from __future__ import annotations

from itertools import chain, count
from pathlib import Path

import psutil
import pytest
import torch

from luthier.modeling import counts, device
from luthier.modeling.counts import measure_products, peak_flops, sheet_flops
from luthier.modeling.device import free_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "kinds", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", ("bfloat16", "half"), 989),
        ("NVIDIA H100 PCIe", ("bfloat16", "half"), 756),
        ("NVIDIA A100-SXM4-80GB", ("tf32", "float32"), 156),
        ("NVIDIA A100-SXM4-80GB", ("float32",), 19.5),
        ("Tesla V100-PCIE-16GB", ("float16", "half"), 112),
        ("NVIDIA GeForce RTX 3090 Ti", ("bfloat16", "half"), 80),
        ("NVIDIA A10", ("bfloat16", "half"), 125),
        ("NVIDIA A100X", ("bfloat16", "half"), None),
        ("Tesla V100-SXM2-16GB", ("bfloat16", "half"), None),
        ("NVIDIA GeForce GTX 1080", ("float32",), None),
    ],
)
def test_a_gpu_has_the_peak_of_its_sheet_or_none(name, kinds, tera):
    assert sheet_flops(name, kinds) == (None if tera is None else tera * 1e12)


def test_a_cpu_is_measured():
    assert peak_flops(CPU, torch.float32) > 1e8
    assert measure_products(torch.bfloat16) > 1e6


def test_other_devices_are_not_guessed():
    assert peak_flops(torch.device("meta"), torch.float32) is None
    assert free_memory(torch.device("meta")) is None


def test_free_memory_is_that_of_the_system_shared_by_its_processes(monkeypatch):
    monkeypatch.setattr(device, "_left_by_cgroups", lambda: iter(()))
    alone = free_memory(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")

    shared = free_memory(CPU)

    assert 0 < alone <= psutil.virtual_memory().total
    assert shared < alone / 2


def test_the_limit_of_a_container_counts(tmp_path: Path):
    files = {
        "memory.max": "1000\n",
        "memory.current": "700\n",
        "memory.stat": "anon 500\ninactive_file 150\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    names = ("memory.max", "memory.current", "inactive_file")

    limited = device._left(tmp_path, *names)
    (tmp_path / "memory.max").write_text("max\n")

    assert limited == 450
    assert device._left(tmp_path, *names) is None
    assert device._left(tmp_path / "absent", *names) is None


def test_a_first_product_that_waits_for_a_core_does_not_decide(monkeypatch: pytest.MonkeyPatch):
    times = chain([0.0, 0.0, 10.0], count(10.001, 0.001))
    monkeypatch.setattr(counts.time, "perf_counter", lambda: next(times))

    measured = counts.measure_products.__wrapped__(torch.float32)

    assert measured == pytest.approx(2 * counts.MEASURED_SIZES[0] ** 3 / 0.001, rel=1e-6)
