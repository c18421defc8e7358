"""The machine's limit: GFLOP/s of a square matrix product in each precision, with the threads torch takes."""

import json
import time

import torch


def gflops(dtype: torch.dtype, side: int) -> float:
    """The least disturbed of nine, after one to warm up: a limit is what the machine can do."""
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times[1:]) / 1e9


def main() -> None:
    """Each precision at 2048, or at 256 where it is hopelessly slow (emulated)."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        rate = gflops(dtype, 256)
        slow = 2 * 2048**3 / (rate * 1e9) > 1.0
        name = str(dtype).removeprefix("torch.")
        found[name] = round(rate if slow else gflops(dtype, 2048), 1)
    print(json.dumps({"gflops": found, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
