"""Files are written to their place and nowhere else: no link leads them away."""

import os
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lqconvert import LqError
from lqconvert.cli.main import main
from lqconvert.sweeps.figures import codes
from lqconvert.sweeps.study import sweep
from lqconvert.training.checkpoint import locked
from lqconvert.training.loggers import JsonLines
from lqconvert.utils.file_kinds import SOURCE
from lqconvert.utils.output_files import PREFIX, SUFFIX, Paths, _refuse_irregular, write_all

GRID = {"schemes": ["rate"], "granularities": ["mixed"], "penalties": [1.0]}


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


def parts(folder):
    return list(folder.glob(f"{PREFIX}*{SUFFIX}"))


@pytest.mark.parametrize("name", ["out.xml", ".out.xml.part", f"{PREFIX}0000{SUFFIX}"])
def test_links_are_not_written_through(name, victim, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).symlink_to(victim)
    write_all({folder / "out.xml": lambda path: path.write_text("new")})
    assert victim.read_text() == "precious"
    assert (folder / "out.xml").read_text() == "new"
    assert not (folder / "out.xml").is_symlink()


def test_a_folder_in_the_way_of_the_old_name(tmp_path):
    (tmp_path / ".out.xml.part").mkdir()
    write_all({tmp_path / "out.xml": lambda path: path.write_text("new")})
    assert (tmp_path / "out.xml").read_text() == "new"


def test_the_file_is_like_any_other_new_one(tmp_path):
    before = os.umask(0o027)
    try:
        write_all({tmp_path / "a": lambda path: path.write_text("new")})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["/dev/null", "/dev/x", "/proc/self/fd/1", "link"])
def test_a_device_is_not_replaced(name, tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(LqError, match="is not a regular file"):
        _refuse_irregular(tmp_path / name)  # alone: a test that fails is to break no machine


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, LqError, OSError(28, "No space left")])
def test_what_fails_leaves_nothing(error, tmp_path):
    def fails(path):
        path.write_text("half")
        raise error

    with pytest.raises((LqError, KeyboardInterrupt, SystemExit)):
        write_all({tmp_path / "a": lambda path: path.write_text("new"), tmp_path / "b": fails})
    assert list(tmp_path.iterdir()) == []


WRITES = """
import sys, time
from pathlib import Path
from lqconvert.utils.output_files import write_all
def write(path):
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
write_all({Path(sys.argv[1]): write})
"""


def test_of_a_killed_process_nothing_stays_and_of_a_living_one_all(victim, tmp_path):
    output = tmp_path / "a"
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITES, output], stdout=subprocess.PIPE) for _ in range(2)
    ]
    for process in processes:
        process.stdout.readline()
    assert len(parts(tmp_path)) == 2
    processes[0].kill()
    processes[0].communicate()
    assert not output.exists()
    (tmp_path / f"{PREFIX}link{SUFFIX}").symlink_to(victim)
    os.mkfifo(tmp_path / f"{PREFIX}fifo{SUFFIX}")
    write_all({output: lambda path: path.write_text("new")})
    processes[1].kill()
    processes[1].communicate()
    assert {path.name for path in parts(tmp_path) if path.is_file() and not path.is_symlink()} != set()
    assert victim.read_text() == "precious"
    write_all({output: lambda path: path.write_text("new")})
    assert [path for path in parts(tmp_path) if stat.S_ISREG(path.lstat().st_mode)] == []


def test_many_writers_of_one_file(tmp_path):
    """No process sees another's unfinished file, or loses its own."""
    output, wrong = tmp_path / "a", []

    def work(text):
        for _ in range(100):
            try:
                write_all({output: lambda path: path.write_text(text * 1000)})
                if output.read_text() not in ("a" * 1000, "b" * 1000):
                    wrong.append(output.read_text())
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert output.read_text() in ("a" * 1000, "b" * 1000)
    assert parts(tmp_path) == []


def test_a_log_is_not_written_through_a_link(victim, tmp_path):
    log = tmp_path / "run.jsonl"
    log.symlink_to(victim)
    with pytest.raises(LqError, match=r"run\.jsonl: is a link"):
        JsonLines(log)
    log.unlink()
    lines = JsonLines(log)
    lines.say("first")
    log.rename(tmp_path / "moved")
    log.symlink_to(victim)
    with pytest.raises(LqError, match=r"run\.jsonl: is a link"):
        lines.say("second")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("target", ["nowhere", "/dev/full"])
def test_nor_through_one_that_leads_nowhere(target, tmp_path):
    (tmp_path / "run.jsonl").symlink_to(tmp_path / target)
    with pytest.raises(LqError, match=r"run\.jsonl: is a link"):
        JsonLines(tmp_path / "run.jsonl")
    assert os.listdir(tmp_path) == ["run.jsonl"]


def test_nor_into_a_pipe_that_nobody_reads(tmp_path):
    os.mkfifo(tmp_path / "run.jsonl")
    began = time.monotonic()
    with pytest.raises(LqError, match="cannot be written"):
        JsonLines(tmp_path / "run.jsonl")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_lock_is_not_taken_on_what_lies_there(kind, victim, tmp_path):
    lock = tmp_path / ".m.tflite.lock"
    if kind == "link":
        lock.symlink_to(victim)
    else:
        lock.mkdir()
    with pytest.raises(LqError, match=r"\.m\.tflite\.lock"), locked(tmp_path / "m.tflite"):
        pass
    assert victim.read_text() == "precious"


def test_nor_does_filelock_follow_a_link_that_comes_late(victim, tmp_path, monkeypatch):
    (tmp_path / ".m.tflite.lock").symlink_to(victim)
    monkeypatch.setattr("lqconvert.training.checkpoint.refuse_links", lambda *_: None)
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "m.tflite"):
        pass
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("suffix", SOURCE.suffixes)
def test_sources_of_others_are_not_replaced(suffix, tmp_path):
    paths = Paths(tmp_path / "main.tflite", ("tflm",), sources=("tflm",))
    paths.check()
    (tmp_path / f"main{suffix}").write_text("int main() { return 0; }")
    with pytest.raises(LqError, match=f"main{suffix}: exists, and lqconvert did not write it"):
        paths.check()


@pytest.mark.parametrize("name", ["study.db", "study.db-journal", "study.db-wal", ".study.lock"])
def test_a_sweep_writes_through_no_link(name, victim, samples, tmp_path):
    pytest.importorskip("optuna")
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / name).symlink_to(victim)
    with pytest.raises(LqError, match=f"{name}: is a link"):
        sweep(samples / "digits_cnn.h5", "digits", folder, **GRID)
    assert victim.read_text() == "precious"


def test_a_figure_is_not_drawn_through_a_link(victim, tmp_path):
    (tmp_path / "a.png").symlink_to(victim)
    codes(tmp_path / "a.png", {"dense": np.arange(9)})
    assert victim.read_text() == "precious"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def with_foreign_journal(folder: Path, victim: Path) -> Path:
    """A SQLite database and the journal of a transaction over several, of which the victim would know."""
    made, database = folder / "made.db", folder / "study.db"
    connection = sqlite3.connect(made, isolation_level=None)
    connection.execute("create table a (x)")
    connection.execute("pragma cache_size = 1")
    connection.execute("begin immediate")
    for _ in range(50):
        connection.execute("insert into a values (zeroblob(3000))")
    database.write_bytes(made.read_bytes())
    journal = Path(f"{made}-journal").read_bytes()
    connection.execute("rollback")
    connection.close()
    name = os.fsencode(victim)
    end = struct.pack(">I", (1 << 30) // 4096 + 1) + name + struct.pack(">II", len(name), sum(name))
    left = Path(f"{database}-journal")
    left.write_bytes(journal + end + bytes.fromhex("d9d505f920a163d7"))
    return database


def test_a_sweep_removes_nothing_that_a_strangers_journal_names(victim, samples, tmp_path):
    """SQLite does: it takes the victim for a journal of several databases, of which none is left."""
    pytest.importorskip("optuna")
    folder = tmp_path / "sweep"
    folder.mkdir()
    database = with_foreign_journal(folder, victim)
    with pytest.raises(LqError, match="names other files, and no sweep wrote it"):
        sweep(samples / "digits_cnn.h5", "digits", folder, **GRID)
    assert victim.exists()
    with sqlite3.connect(database) as connection:
        connection.execute("select * from sqlite_master").fetchall()
    assert not victim.exists(), "SQLite no longer does so: the test needs another journal"


def test_a_check_writes_into_its_own_files_alone(int8, victim, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for name in (".r.xml.part", ".b.json.part", "r.xml", "b.json"):
        (folder / name).symlink_to(victim)
    options = [
        "--max-size",
        "1MB",
        "--junit",
        str(folder / "r.xml"),
        "--save-baseline",
        str(folder / "b.json"),
    ]
    assert CliRunner().invoke(main, ["check", str(int8), *options]).exit_code == 0
    assert victim.read_text() == "precious"
    assert (folder / "r.xml").read_text().startswith("<?xml")
