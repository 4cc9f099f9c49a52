from __future__ import annotations

import os
import pickle
import random
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from attempt_ray.errors import AttemptError, ConfigError, IntegrityError, StorageError
from attempt_ray.orchestration import study_storage
from attempt_ray.orchestration.study_storage import (
    held,
    integrity_problem,
    network_file_system,
    open_study_storage,
)

ROOT = Path(__file__).parents[3]
EXT4 = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"


@pytest.fixture
def server(postgres: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server, whose password is in the environment; it runs again afterwards."""
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    yield postgres
    postgres.start()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new storage can be made."""
    if request.param == "sqlite":
        return str(tmp_path / "search" / "study.db")
    return str(request.getfixturevalue("server").new_database())


class Writers:
    """Processes that write to the study `search`.

    Attributes:
        told: Value of each trial that one of them was told is written, by number.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.told: dict[int, float] = {}
        self._process = process

    def start(self, place: str, *, trials: int) -> int:
        return int(self._ask(f"start {place} {trials}", until="started"))

    def wait(self) -> int:
        return int(self._ask("wait", until="ended"))

    def read(self, *, until: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            kind, *words = line.split()
            if kind == "told":
                assert int(words[1]) not in self.told
                self.told[int(words[1])] = float(words[2])
            if kind == until:
                return words[0]
        raise AssertionError("the writers' process ended")

    def _ask(self, command: str, *, until: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self.read(until=until)


@pytest.fixture
def writers(place: str) -> Iterator[Writers]:
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("write_study.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        yield Writers(process)
        process.kill()


def make_study(place: str) -> optuna.Study:
    return optuna.create_study(
        study_name="search", storage=open_study_storage(place), load_if_exists=True, direction="minimize"
    )


def read_trials(place: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="search", storage=open_study_storage(place)).trials


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8192:12288] = random.Random(0).randbytes(4096)
    path.write_bytes(content)


def test_what_one_storage_writes_another_reads(place):
    study = make_study(place)
    study.enqueue_trial({"x": 0.25})
    study.set_user_attr("tasks", ["rte", "mrpc"])
    trial = study.ask()
    assert trial.suggest_float("x", 0, 1) == 0.25
    trial.report(float("nan"), step=1)
    trial.report(0.5, step=2)
    trial.set_user_attr("run", "runs/a")
    study.tell(trial, 0.75)
    study.tell(study.ask(), state=TrialState.FAIL)

    again = optuna.load_study(study_name="search", storage=open_study_storage(place))
    assert again.user_attrs == {"tasks": ["rte", "mrpc"]}
    assert [found.state for found in again.trials] == [TrialState.COMPLETE, TrialState.FAIL]
    found = again.trials[0]
    assert (found.params, found.value, found.user_attrs) == ({"x": 0.25}, 0.75, {"run": "runs/a"})
    assert str(found.intermediate_values) == "{1: nan, 2: 0.5}"


def test_processes_and_threads_make_a_storage_and_write_to_it_at_once(place, writers):
    for _ in range(2):
        writers.start(place, trials=5)

    def write() -> None:
        study = make_study(place)
        for _ in range(3):
            study.tell(study.ask(), 0.5)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert [writers.wait() for _ in range(2)] == [0, 0]
    for thread in threads:
        thread.join()
    trials = read_trials(place)
    assert [trial.number for trial in trials] == list(range(2 * 5 + 3 * 3))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert {number: trials[number].value for number in writers.told} == writers.told
    assert len(writers.told) == 2 * 5


def test_an_enqueued_trial_is_taken_by_one_process(place, writers):
    wanted = [number / 16 for number in range(16)]
    study = make_study(place)
    for x in wanted:
        study.enqueue_trial({"x": x})
    for _ in range(2):
        writers.start(place, trials=8)
    assert [writers.wait() for _ in range(2)] == [0, 0]
    assert sorted(writers.told.values()) == wanted
    assert len(study.trials) == 16


def test_a_killed_writer_loses_nothing_that_was_acknowledged(place, writers):
    rng = random.Random(0)
    for _ in range(10):
        process = writers.start(place, trials=1000)
        writers.read(until="told")
        time.sleep(rng.random() * 0.1)
        os.kill(process, signal.SIGKILL)
        assert writers.wait() == -signal.SIGKILL
    assert integrity_problem(place) is None
    trials = read_trials(place)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len(writers.told) >= 10
    for number, value in writers.told.items():
        found = trials[number]
        assert (found.state, found.value, found.params) == (TrialState.COMPLETE, value, {"x": value})
        assert (found.intermediate_values, list(found.user_attrs)) == ({1: value / 2}, ["pid"])


def test_a_storage_is_sent_as_its_place(place):
    storage = open_study_storage(place)
    sent = pickle.dumps(storage)
    study_id = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "search")
    received = pickle.loads(sent)
    assert received.get_study_id_from_name("search") == study_id
    assert received.url == storage.url


def test_nothing_is_printed_and_neither_ray_nor_torch_is_imported(tmp_path):
    program = (
        "import sys, optuna\n"
        "from attempt_ray.orchestration.study_storage import open_study_storage\n"
        "optuna.create_study(storage=open_study_storage(sys.argv[1]))\n"
        "assert not {'ray', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "study.db"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_path_and_its_url_are_one_storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = open_study_storage("a b?{c}%20.db")
    assert list(tmp_path.iterdir()) == [tmp_path / "a b?{c}%20.db"]
    for url in ("sqlite:///a b%3F{c}%2520.db", f"sqlite:///{tmp_path}/a b%3F{{c}}%2520.db"):
        assert open_study_storage(url).url == made.url
    assert len(list(tmp_path.iterdir())) == 1


def test_a_new_file_is_its_users_alone_and_waits_for_the_disk(tmp_path):
    path = tmp_path / "new" / "directory" / "study.db"
    storage = open_study_storage(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with storage.engine.connect() as connection:
        settings = ("journal_mode", "synchronous", "busy_timeout")
        found = [connection.exec_driver_sql(f"PRAGMA {setting}").scalar() for setting in settings]
    assert found == ["delete", 3, 60_000]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "got",
    [
        "",
        " ",
        "a\0b",
        "sqlite://",
        "sqlite:///",
        "sqlite://host/study.db",
        "sqlite:///study.db?mode=ro",
        "mysql://user:hunter2@host/x",
        "s3://hunter2@bucket/study.db",
        "https://host/hunter2",
        "journal:///study.log",
        "postgresql+psycopg2://user@host/x",
        "postgresql://user@host",
        "postgresql://user@host:port/x",
        "/dev/null",
        "/tmp",
    ],
)
def test_other_places_are_refused(got):
    with pytest.raises(
        ConfigError, match=r"^got .*; wanted the path of an SQLite file, or postgresql://"
    ) as caught:
        open_study_storage(got)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@host/x",
        "postgres://user:hun/ter2@host/x",
        "postgresql+psycopg://user@host/x?password=hunter2",
        "postgresql://user@host/x?passw%6Frd=hunter2",
        "postgresql://user@host/x?sslmode=require&sslpassword=hunter2",
    ],
)
def test_a_url_with_a_password_is_refused_without_repeating_it(url):
    with pytest.raises(ConfigError, match=r"carries a password.*PGPASSWORD.*~/\.pgpass$") as caught:
        open_study_storage(url)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("mount", "kind"),
    [
        ("/data rw - nfs4 server:/ rw", "nfs4"),
        ("/data rw shared:1 master:2 - cifs //server/x rw", "cifs"),
        ("/data/new\\040disk rw - lustre server:/ rw", "lustre"),
        ("/data rw - fuse.sshfs host: rw", "fuse.sshfs"),
        ("/data rw - fuse mount-s3 rw", "fuse"),
        ("/data rw - ceph server:/ rw", "ceph"),
        ("/data/new rw - nfs server:/ rw", None),
        ("/data rw - xfs /dev/vdb rw", None),
        ("/data rw - 9p none rw", None),
        ("/data rw - overlay overlay rw", None),
        ("/data rw - fuse.mergerfs /a:/b rw", None),
        ("/data rw - fuseblk /dev/vdb rw", None),
        ("/data rw - nfs server:/ rw\n40 27 0:40 / /data/new\\040disk rw - ext4 /dev/vdc rw", None),
        ("/data rw - ext4 /dev/vdc rw\n40 27 0:40 / /data rw - nfs server:/ rw", "nfs"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(mount, kind):
    mounts = f"{EXT4}39 27 0:39 / {mount}\n"
    assert network_file_system(Path("/data/new disk/study.db"), mounts=mounts) == kind


def test_an_sqlite_file_on_a_network_file_system_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mounts").write_text(f"{EXT4}39 27 0:39 / {tmp_path}/home rw - nfs4 server:/ rw\n")
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    monkeypatch.setattr(study_storage, "_MOUNT_TABLE", tmp_path / "mounts")
    with pytest.raises(
        ConfigError, match=r"home/new/study\.db, .* \(nfs4\), whose locks .*; choose a path on a local disk"
    ):
        open_study_storage(str(tmp_path / "link" / "new" / "study.db"))
    assert list((tmp_path / "home").iterdir()) == []
    open_study_storage(str(tmp_path / "study.db"))
    monkeypatch.setattr(study_storage, "_MOUNT_TABLE", tmp_path / "none")
    open_study_storage(str(tmp_path / "home" / "study.db"))


@pytest.mark.parametrize("content", [b"hello\n", b"SQLite format 3\0" + bytes(4096), bytes(8192)])
def test_a_file_that_is_no_database_is_told_of_and_left(tmp_path, content):
    path = tmp_path / "study.db"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"study\.db is not a whole SQLite database: .*; restore it"):
        open_study_storage(str(path))
    assert path.read_bytes() == content


def test_a_damaged_database_is_told_of(tmp_path):
    path = tmp_path / "study.db"
    make_study(str(path)).ask()
    assert integrity_problem(str(path)) is None
    damage(path)
    problem = integrity_problem(str(path))
    assert problem is not None and "\n" not in problem
    with pytest.raises(IntegrityError, match=r"is not a whole SQLite database: .*; restore it from a copy"):
        open_study_storage(str(path))


def test_a_database_that_is_not_there_is_not_made_by_looking(tmp_path):
    with pytest.raises(StorageError, match="unable to open database file; give this user the right"):
        integrity_problem(str(tmp_path / "study.db"))
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_another_process_holds_is_told_of(tmp_path, monkeypatch):
    path = tmp_path / "study.db"
    make_study(str(path))
    monkeypatch.setattr(study_storage, "BUSY_SECONDS", 0.1)
    study = make_study(str(path))
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    for attempt in (study.ask, lambda: open_study_storage(str(path))):
        with pytest.raises(StorageError, match="database is locked; another process holds the database"):
            attempt()
    holder.close()
    assert study.ask().number == 0


def test_a_file_in_the_place_of_a_directory_is_told_of(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in ("file/study.db", "file/new/study.db"):
        with pytest.raises(StorageError, match=r"^cannot make .*file.* choose another"):
            open_study_storage(str(tmp_path / path))


def test_a_full_disk_is_told_of_and_loses_nothing(disk):
    directory, resize = disk
    path = directory / "study.db"
    resize(16)
    with pytest.raises(StorageError, match=r"study\.db: .*full; free some space or choose another disk"):
        make_study(str(path))
    resize(512)
    study = make_study(str(path))
    told = []

    def write() -> None:
        while True:
            study.add_trial(optuna.trial.create_trial(value=len(told), user_attrs={"text": "x" * 1000}))
            told.append(len(told))

    with pytest.raises(StorageError, match=r"study\.db: .*full; free some space or choose another disk"):
        write()
    resize(2048)
    assert integrity_problem(str(path)) is None
    study.add_trial(optuna.trial.create_trial(value=len(told)))
    assert [trial.value for trial in read_trials(str(path))] == [*told, len(told)]


def test_a_disk_that_cannot_be_written_is_told_of(disk):
    directory, resize = disk
    resize(1024)
    path = directory / "study.db"
    storage = open_study_storage(str(path))
    study = optuna.create_study(storage=storage)
    storage.engine.dispose()
    subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
    for attempt in (study.ask, lambda: open_study_storage(str(path))):
        with pytest.raises(StorageError, match=r"read-?only.*; make the file, its directory and its disk"):
            attempt()
    with pytest.raises(StorageError, match="Read-only file system; mount it writable"):
        open_study_storage(str(directory / "new.db"))


@pytest.mark.parametrize(
    ("version", "fix"), [("v3.0.0.d", "upgrade it"), ("v99", "install the version of Optuna that made it")]
)
def test_tables_of_another_optuna_are_refused(place, version, fix):
    storage = open_study_storage(place)
    with storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"UPDATE alembic_version SET version_num = '{version}'"))
    with pytest.raises(ConfigError, match=f"has tables of version '{version}'; Optuna .* wants 'v.*': {fix}"):
        open_study_storage(place)


def test_the_password_is_in_nothing_that_is_kept_or_sent(server):
    storage = open_study_storage(server.new_database())
    study = optuna.create_study(storage=storage)
    shown = [
        repr(storage),
        str(storage.url),
        str(storage.engine.url),
        repr(storage.engine),
        str(vars(storage)),
    ]
    for text in (*shown, pickle.dumps(storage).decode("latin1"), repr(study.trials)):
        assert server.password not in text


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_password_file_does_as_well(server, scheme, monkeypatch, tmp_path):
    (tmp_path / "pgpass").write_text(f"*:*:*:*:{server.password}\n")
    (tmp_path / "pgpass").chmod(0o600)
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    url = f"{scheme}{server.url.removeprefix('postgresql')}"
    assert open_study_storage(url).url.startswith("postgresql+psycopg://attempt@127.0.0.1:")


def test_a_restarted_server_is_connected_to_again(server):
    study = make_study(server.new_database())
    study.tell(study.ask(), 1)
    server.stop()
    server.start()
    study.tell(study.ask(), 2)
    server.stop()
    with pytest.raises(StorageError, match="check that the server runs and can be reached"):
        study.ask()
    server.start()
    study.tell(study.ask(), 3)
    assert [trial.value for trial in study.trials] == [1, 2, 3]


def refused(attempt: Callable[[], object], *, match: str) -> None:
    began = time.monotonic()
    with pytest.raises(StorageError, match=match) as caught:
        attempt()
    assert time.monotonic() - began < 10
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, AttemptError)


def test_a_server_that_does_not_answer_is_told_of(unused_port, monkeypatch):
    where = f"'x' on PostgreSQL at 127.0.0.1, port {unused_port}: .*; check that the server runs"
    refused(lambda: open_study_storage(f"postgresql://me@127.0.0.1:{unused_port}/x"), match=where)
    refused(
        lambda: open_study_storage("postgresql://me@nowhere.invalid/x"),
        match="at nowhere.invalid, port 5432: .*",
    )
    monkeypatch.setattr(study_storage, "CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/x"
        refused(lambda: open_study_storage(url), match="timeout.*; check that the server runs")


def test_a_server_that_refuses_is_told_of_with_what_to_do(server, monkeypatch):
    import psycopg

    missing = server.url.replace("/postgres", "/missing")
    refused(lambda: open_study_storage(missing), match='"missing" does not exist; create the database')
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE guest LOGIN PASSWORD '{server.password}'")
    guest = server.new_database().replace("attempt@", "guest@")
    refused(lambda: open_study_storage(guest), match="permission denied .*; give the user the right")
    fix = "; check the user and the password, which is read from PGPASSWORD"
    monkeypatch.setenv("PGPASSWORD", "wrong")
    refused(lambda: open_study_storage(server.url), match=f'failed for user "attempt"{fix}')
    monkeypatch.delenv("PGPASSWORD")
    refused(lambda: open_study_storage(server.url), match=f"no password supplied{fix}")


def test_a_driver_that_is_missing_is_told_of(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    refused(lambda: open_study_storage("postgresql://me@127.0.0.1/x"), match=r"; install psycopg\[binary\]$")


def test_one_process_alone_holds_a_study(place: str) -> None:
    open_study_storage(place)
    with held(place, "one"), held(place, "other"):
        with pytest.raises(ConfigError, match=r"study .one. in .* is being searched by another process"):
            with held(place, "one"):
                pass
    with held(place, "one"):
        pass
