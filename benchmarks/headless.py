"""Does a headless run ever hang? Many papermill runs of 04_analysis, several at a time: `make bench-headless`.

Every run has a cell time-out; one that it stops, or that fails, is counted and named.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llgbm_nb import compute_deltas, create_probes
from llgbm_nb.files import ROOT


def run(number: int, folder: Path, seconds: int) -> float | None:
    """Seconds of one run; None if it hung or failed."""
    command = [Path(sys.executable).parent / "papermill", "--no-progress-bar", "--execution-timeout", str(seconds)]
    command += [ROOT / "notebooks/04_analysis.ipynb", folder / f"{number}.ipynb"]
    start = time.perf_counter()
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=4 * seconds)
    except subprocess.TimeoutExpired:
        print(f"run {number} hung", flush=True)
    except subprocess.CalledProcessError as error:
        print(f"run {number} failed: {error.stderr.strip().splitlines()[-1]}", flush=True)
    else:
        return time.perf_counter() - start
    return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=300, help="what a cell may take")
    options = parser.parse_args()
    compute_deltas(ROOT / "data/teacher_checkpoints", create_probes(), cache_dir=ROOT / "deltas")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.at_once) as pool:
        runs = pool.map(lambda number: run(number, Path(folder), options.seconds), range(options.runs))
        times = [seconds for seconds in runs if seconds is not None]
    print(f"{len(times)} of {options.runs} runs went through, {options.at_once} at a time", end="")
    print(f"; median {statistics.median(times):.0f} s, longest {max(times):.0f} s" if times else "")
    sys.exit(len(times) < options.runs)


if __name__ == "__main__":
    main()
