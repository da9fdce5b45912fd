"""Kill both scripts at random moments, and fill the disk: embeddings/ must hold one complete run, the old or the new.

    python tests/benchmarks/faults.py [KILLS]

Half of the kills fall anywhere in a run, half while files are being saved, the only time at which anything can go wrong.
After each, the files must be those of the old or of the new run, byte for byte, or become so when the next start finishes
what was begun; and after every fifth kill the same script must run through.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from conftest import Pair, made_up  # noqa: E402


def state(folder):
    """Return {name: SHA-256} of all files of a run; the lock and unfinished hidden folders are not part of it.

    A .keras file holds the time of its saving: it must be the one whose hash run.json names, and that hash is left out.
    """
    files = [file for file in folder.rglob("*") if file.is_file() and not file.relative_to(folder).parts[0].startswith(".")]
    hashes = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
    if "run.json" in hashes:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        model = run.pop("model", None)
        hashes["run.json"] = json.dumps(run)
        if "embed_model.keras" in hashes:
            hashes["embed_model.keras"] = "named" if hashes["embed_model.keras"] == model else "another"
    return hashes


def run(folder, *command, kill_after=None, kill_in_saving=False):
    """Run Python in a folder; kill it after some seconds, or at a random moment once it has begun to write files."""
    process = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if kill_in_saving:
        while process.poll() is None and not os.path.exists(folder / "embeddings/.saving/c.npy") and not os.path.exists(
            folder / "embeddings/.saving/embed_model.keras"
        ):
            time.sleep(0.0005)
        kill_after = random.uniform(0, 0.1)
    if kill_after is not None:
        time.sleep(kill_after)
        process.kill()
    return process.wait(), process.stderr.read()


def main(kills=40):
    random.seed(0)
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        old = Pair(top / "old", made_up(2000), {"CATEGORICAL_COLUMNS": ["c", "d"]})
        for script in ("build_embeddings.py", "build_embed_model.py"):
            assert run(old.folder, script)[0] == 0
        counts = {}
        for script in ("build_embeddings.py", "build_embed_model.py"):
            new = top / "new"
            shutil.copytree(old.folder, new)
            text = (new / script).read_text()
            changed = text.replace("SEED = 0", "SEED = 1") if script == "build_embeddings.py" else text.replace("LEARNING_RATE = 5e-3", "LEARNING_RATE = 4e-3")
            assert changed != text
            (new / script).write_text(changed)
            shutil.copytree(new, top / "begin")
            start = time.perf_counter()
            assert run(new, script)[0] == 0
            seconds, states = time.perf_counter() - start, {"old": state(old.embeddings), "new": state(new / "embeddings")}
            for kill in range(kills):
                shutil.copytree(top / "begin", top / "trial")
                saving = kill % 2 == 1
                run(top / "trial", script, kill_after=random.uniform(0, seconds), kill_in_saving=saving)
                at_once = state(top / "trial/embeddings")
                old.base.finish_saving(top / "trial/embeddings")  # as every start does before anything else
                later = state(top / "trial/embeddings")
                held = [name for name, files in states.items() if later == files] or ["neither"]
                key = (script, held[0], "at once" if at_once == later else "after the next start")
                if kill % 10 < 2 and run(top / "trial", script)[0] != 0:
                    key += ("THE NEXT RUN FAILS",)
                counts[key] = counts.get(key, 0) + 1
                shutil.rmtree(top / "trial")
            for folder in ("new", "begin"):
                shutil.rmtree(top / folder)
        for key, count in counts.items():
            print(f"{count:4}", *key, sep="  ")

        disk = top / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", disk], stderr=subprocess.DEVNULL).returncode == 0:
            for script in ("build_embeddings.py", "build_embed_model.py"):
                shutil.copytree(old.embeddings, disk, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.keras", "*.tsv"))
                text = (old.folder / script).read_text().replace("EMBEDDINGS_DIR = 'embeddings'", f"EMBEDDINGS_DIR = {str(disk)!r}")
                text = text.replace('EMBEDDINGS_DIR = "embeddings"', f"EMBEDDINGS_DIR = {str(disk)!r}")
                (old.folder / script).write_text(text)
                (disk / "filler").write_bytes(b"x" * max(0, shutil.disk_usage(disk).free - 8192))
                before = state(disk)
                status, message = run(old.folder, script)
                print(f"disk full, {script}: exit status {status}, files {'unchanged' if state(disk) == before else 'CHANGED'}: {message.strip().splitlines()[-1]}")
            subprocess.run(["umount", disk])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
