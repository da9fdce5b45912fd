"""Train the pair in two processes with JAX: the same vectors as one process of two devices, and an end to all when one is killed.

    pip install jax
    python tests/benchmarks/processes.py

Prints the largest difference between the vectors of two processes and those of one with two devices, whether TensorFlow
loads and scores what JAX has saved, and how the first process ends when the second is killed.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
from conftest import Pair, made_up

SCRIPTS = ["build_embeddings.py", "build_embed_model.py"]
ONE = {
    "KERAS_BACKEND": "jax",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "NPROC": "8",  # XLA's threads: with as few as two cores its two devices wait for each other for ever
}
TWO = {
    "KERAS_BACKEND": "jax",
    "KERAS_DISTRIBUTION_JOB_ADDRESSES": "localhost:12399,localhost:12400",
    "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
}


def start(folder, script, settings, process=0):
    """Start a script as one of the processes and return it; what it says is kept in a file."""
    said = open(folder / f"said{process}.txt", "w")
    environment = {**os.environ, **settings, **({"KERAS_DISTRIBUTION_PROCESS_ID": str(process)} if settings is TWO else {})}
    return subprocess.Popen([sys.executable, script], cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)


def main():
    with tempfile.TemporaryDirectory() as name:
        table = made_up(4000)
        for epochs in (1, 3):  # rounding grows while a network trains: after three epochs it can be seen
            settings = {"EPOCHS": epochs}
            one, two = (Pair(Path(name) / f"{n}{epochs}", table, settings, settings) for n in ("one", "two"))
            for script in SCRIPTS:
                assert start(one.folder, script, ONE).wait() == 0, (one.folder / "said0.txt").read_text()[-2000:]
                processes = [start(two.folder, script, TWO, process) for process in (1, 0)]
                ended = [process.wait() for process in processes]
                assert ended == [0, 0], (two.folder / "said0.txt").read_text()[-2000:]
            for column in ("c", "d"):
                difference = np.abs(one.matrix(column)[0] - two.matrix(column)[0]).max()
                print(f"{column}: largest difference of two processes from one {difference:.1e} after {epochs} epochs")
        both = [pair.predict(table) for pair in (one, two)]
        print(f"TensorFlow scores both models; largest difference {np.abs(both[0] - both[1]).max():.1e}")

        two.edit({"EPOCHS": 3000})
        before = two.saved()
        worker, first = (start(two.folder, SCRIPTS[0], TWO, process) for process in (1, 0))
        while (two.folder / "said0.txt").read_text().count("  epoch ") < 2:
            time.sleep(0.5)
        worker.kill()
        begin = time.perf_counter()
        status = first.wait(300)
        print(f"second process killed: the first ended after {time.perf_counter() - begin:.1f} s with status {status}")
        print("embeddings/ unchanged" if two.saved() == before else "embeddings/ CHANGED")
        print(*(two.folder / "said0.txt").read_text().splitlines()[-3:], sep="\n")


if __name__ == "__main__":
    main()
