"""Every code block and command of README.md and of what it refers to: run, or compared with what runs it elsewhere."""

import ast
import contextlib
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT, Pair

README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERRED = [(ROOT / folder / "README.md").read_text(encoding="utf-8") for folder in ("embeddings", "tests/benchmarks")]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", "\n".join([README, *REFERRED]), re.MULTILINE | re.DOTALL)
PYTHON = [block for language, block in BLOCKS if language == "python" and not block.startswith("# build_")]
EDITS = {re.match(r"# (\w+)", block)[1]: block for _, block in BLOCKS if block.startswith("# build_")}
COMMANDS = [
    command.strip()
    for language, block in BLOCKS
    if language == "bash"
    for command in re.split(r"&&|\n", block)
    if command.strip()
]


def settings_of(block):
    """Return the settings in a block of assignments."""
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(block).body}


def own_setting(script, name):
    """Return a setting as it stands in the repository's script."""
    body = ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8")).body
    (value,) = [node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name]
    return eval(compile(ast.Expression(value), script, "eval"))


@pytest.fixture(scope="module")
def flights(tmp_path_factory):
    """Return a folder in which both scripts, with EPOCHS = 1, have run on every 300th of the flights; and what they said."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data/airports.csv", folder / "data")
    table = pd.read_csv(ROOT / "data/flights.csv.gz", dtype=str, keep_default_na=False)
    table[::300].to_csv(folder / "data/flights.csv.gz", index=False)
    base = {name: own_setting("build_embeddings", name) for name in ("DATA_FILE", "TARGET_COLUMN", "CATEGORICAL_COLUMNS")}
    pair = Pair(folder, base=base, model={"NUMERICAL_COLUMNS": own_setting("build_embed_model", "NUMERICAL_COLUMNS")})
    with contextlib.redirect_stdout(open(folder / "printed", "w+", encoding="utf-8")) as printed:
        pair.run()
        printed.seek(0)
        return pair, printed.read()


@pytest.mark.parametrize("block", PYTHON, ids=range(1, len(PYTHON) + 1))
def test_python_block_runs(flights, block, capsys, monkeypatch):
    pair, _ = flights
    if "from build_" in block:
        monkeypatch.setitem(sys.modules, "build_embeddings", pair.base)
        monkeypatch.setitem(sys.modules, "build_embed_model", pair.model)
        pair.call(exec, compile(block, "README.md", "exec"), {})
        printed = capsys.readouterr().out
    else:  # a process of its own, in a folder without the scripts
        alone = pair.folder / "alone"
        shutil.copytree(pair.embeddings, alone / "embeddings", dirs_exist_ok=True)
        shutil.copytree(pair.folder / "data", alone / "data", dirs_exist_ok=True)
        done = subprocess.run([sys.executable, "-c", block], cwd=alone, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    assert re.search(r"\d", printed), "every example prints figures"


def test_examples_are_as_short_as_they_promise():
    lines = {block: len([line for line in block.splitlines() if line.strip()]) for block in PYTHON}
    assert max(lines.values()) <= 10
    assert lines[PYTHON[0]] <= 5


def test_edit_blocks_run_on_a_table_with_these_columns(tmp_path):
    base, model = (settings_of(EDITS[name]) for name in ("build_embeddings", "build_embed_model"))
    rows = range(300)
    table = pd.DataFrame({column: [f"{column} {i % 7}" for i in rows] for column in base["CATEGORICAL_COLUMNS"]})
    for column in [*model["NUMERICAL_COLUMNS"], base["TARGET_COLUMN"]]:
        table[column] = [(i * 37) % 101 for i in rows]
    table[base["SPLIT_COLUMN"]] = pd.date_range("2024-01-01", periods=len(rows)).strftime("%Y-%m-%d")
    (tmp_path / base["DATA_FILE"]).parent.mkdir()
    table.to_csv(tmp_path / base["DATA_FILE"], index=False)
    pair = Pair(tmp_path, base=base, model=model).run()
    assert len(pair.predict(table)) == len(table)


def test_the_scripts_have_every_setting_that_the_readme_names():
    scripts = "".join((ROOT / f"{name}.py").read_text(encoding="utf-8") for name in EDITS)
    for name in set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+|SEED|TASK)\b", README)):
        assert re.search(rf"^{name} = ", scripts, re.MULTILINE), name


def test_transcript_is_what_the_scripts_print(flights):
    """Compare the lines with their figures taken out; both may leave out or add lines that are about training."""
    (transcript,) = [block for language, block in BLOCKS if language == "text"]
    def shape(line):
        line = line.replace("above", "below").replace("might turn", "would hardly turn")  # the verdict on so few rows may be another
        line = line.split(" (hardly")[0]  # said of tailnum, which so few of the flights hardly has twice
        return re.sub(r"\W+", " ", re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?\??", "", line)).strip()

    printed = {shape(line) for line in flights[1].splitlines()}
    free = re.compile(r"^\$|^  epoch|\.\.\.|rows\)|^$|^ +\d+\.\d s$")  # progress, nearest categories, marks of what is left out, seconds
    unknown = [line for line in transcript.splitlines() if not free.search(line) and shape(line) not in printed]
    assert not unknown


def test_commands_name_what_is_there():
    """Check each command of a bash block by its parts: the two of the set-up are run by a person and by .ci/run."""
    for command in COMMANDS:
        command = re.sub(r"^(\w+=\S+ )+", "", command)
        if command.startswith("export ") or command == "wait":
            continue
        assert command == "python3 -m venv .venv" or command.startswith(".venv/bin/"), command
        for word in command.split():
            if word.endswith((".py", ".txt")):
                assert (ROOT / word).is_file(), word
    set_up = [block for language, block in BLOCKS if block.startswith("python3 -m venv")]
    assert len(set_up) == 2
    assert all(block.count("\n") == 1 for block in set_up), "each is one line"
    assert set_up[0].index("build_embeddings.py") < set_up[0].index("build_embed_model.py")


def test_ci_runs_the_second_command():
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    pattern = re.search(r"grep -E '(.*)' README.md", ci)[1]
    commands = [line for line in README.splitlines() if re.search(pattern, line)]
    assert commands == [block.strip() for language, block in BLOCKS if language == "bash" and "pytest" in block]
    assert "requirements" not in ci and "-m pytest" not in ci.replace(pattern, ""), "no command of its own that could drift"


def test_picture_is_drawn_from_the_files_of_a_run(flights):
    pair, _ = flights
    tests = pair.folder / "tests"
    tests.mkdir()
    script = (ROOT / "tests/make_picture.py").read_text(encoding="utf-8")
    (tests / "make_picture.py").write_text(re.sub(r"^MIN_ROWS = .*", "MIN_ROWS = 5", script, flags=re.MULTILINE), "utf-8")
    done = subprocess.run([sys.executable, "tests/make_picture.py"], cwd=pair.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tests / "picture.png").stat().st_size > 10_000


def test_files_that_the_readme_links_are_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
