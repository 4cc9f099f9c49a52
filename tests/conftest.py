"""What every test shares: no network, no home directory of the user's, one thread."""

from __future__ import annotations

import json
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Set before any library reads them; Ray's workers and subprocesses inherit them.
_HOME = tempfile.mkdtemp(prefix="attempt-tests-")
os.environ |= {
    "HOME": _HOME,
    "XDG_CACHE_HOME": f"{_HOME}/.cache",
    "HF_HOME": f"{_HOME}/.cache/huggingface",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MPLCONFIGDIR": f"{_HOME}/.cache/matplotlib",
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_EC2_METADATA_DISABLED": "true",
}

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


_WORDS = tuple(f"w{number}" for number in range(30))
_PIECES = (
    "0",
    "1",
    "2",
    "premise:",
    "hypothesis:",
    "sentence1:",
    "sentence2:",
    "sentence:",
    "question:",
    "context:",
)
_COLUMNS = {
    "mnli": ("premise", "hypothesis"),
    "sst2": ("sentence",),
    "rte": ("sentence1", "sentence2"),
    "mrpc": ("sentence1", "sentence2"),
}
_SPLITS = {
    "mnli": {"train": 12, "validation_mismatched": 6, "validation_matched": 6},
    "sst2": {"train": 16, "validation": 6},
    "rte": {"train": 12, "validation": 8},
    "mrpc": {"train": 12, "validation": 8},
}


def heed_signals() -> None:
    """Undo what a child would inherit from nohup, or from a shell's background: for `preexec_fn`."""
    for each in (signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SHARED.is_dir():
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(pytest.mark.skip(reason=f"{SHARED} is not there"))


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """Port of an S3 server, a process of its own that ends with this one."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.stdin.close()


@pytest.fixture
def unused_port() -> int:
    """A port of this machine that nobody listens at."""
    return _unused_port()


def _unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# SIGINT ends connections first; SIGTERM would wait for them.
_POSTGRES = """
"$@" &
read _
kill -INT $!
wait
"""


class PostgreSQL:
    """A server on a port of this machine, which the tests' process owns.

    Attributes:
        url: Its first database, for its superuser, without the password.
        password: What PGPASSWORD has to hold.
    """

    def __init__(self, binaries: Path, directory: Path) -> None:
        self.password = secrets.token_hex(16)
        self._port = _unused_port()
        self.url = self._url("postgres")
        self._binaries, self._directory = binaries, directory
        # It refuses to run as root.
        user = pwd.getpwnam(_unprivileged()) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self._as_user: dict[str, Any] = {"env": {"PATH": os.defpath, "TZ": "UTC"}, "cwd": directory}
        if os.geteuid() == 0:
            self._as_user |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._server: subprocess.Popen[bytes] | None = None
        password = directory / "password"
        password.write_text(self.password)
        for path in (directory, password):
            os.chown(path, user.pw_uid, user.pw_gid)
        options = ["--username=attempt", f"--pwfile={password}", "--auth=scram-sha-256"]
        options += ["--encoding=UTF8", "--locale=C", "--no-sync", f"--pgdata={directory / 'data'}"]
        made = subprocess.run(
            [binaries / "initdb", *options], **self._as_user, capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr

    def start(self) -> None:
        """Start it where it does not run, and wait until it answers."""
        import psycopg

        if self._server is not None:
            return
        settings = [
            "listen_addresses=127.0.0.1",
            f"port={self._port}",
            f"unix_socket_directories={self._directory}",
        ]
        settings += ["fsync=on", "shared_buffers=16MB"]
        options = ["-D", self._directory / "data", *(f"--{setting}" for setting in settings)]
        log = self._directory / "log"
        with log.open("ab") as file:
            self._server = subprocess.Popen(
                ["sh", "-c", _POSTGRES, "sh", self._binaries / "postgres", *options],
                **self._as_user,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url, password=self.password).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End it and every connection."""
        if self._server is not None:
            self._server.communicate(b"\n", timeout=30)
            self._server = None

    def new_database(self) -> str:
        """Return the URL of a new, empty database."""
        import psycopg

        name = f"tests_{secrets.token_hex(6)}"
        with psycopg.connect(self.url, password=self.password, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self._url(name)

    def _url(self, database: str) -> str:
        return f"postgresql://attempt@127.0.0.1:{self._port}/{database}"


def _unprivileged() -> str:
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """A PostgreSQL server that takes a password, as a process that ends with this one."""
    found = [shutil.which("initdb"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))]
    binaries = [Path(path).resolve().parent for path in found if path is not None]
    if not binaries:
        pytest.skip("PostgreSQL's server (initdb, postgres) is not installed here")
    # The path of a Unix socket has at most 107 bytes, which pytest's own directories leave little of.
    directory = Path(tempfile.mkdtemp(prefix="attempt-postgres-", dir="/tmp"))
    server = None
    try:
        server = PostgreSQL(binaries[-1], directory)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A disk in memory, and how to give it another size in KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a disk in memory is not allowed here")

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}k", place], check=True)

    try:
        yield place, resize
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def s3(s3_port: int) -> str:
    """URI of a new bucket."""
    from pyarrow import fs

    bucket = f"bucket-{secrets.token_hex(6)}"
    options = f"endpoint_override=127.0.0.1:{s3_port}&scheme=http&region=us-east-1"
    filesystem, _ = fs.FileSystem.from_uri(f"s3://{bucket}?{options}&allow_bucket_creation=true")
    filesystem.create_dir(bucket)
    return f"s3://{bucket}/attempt?{options}"


@pytest.fixture(scope="session")
def save_tiny_backbone() -> Callable[[Path], None]:
    """Return a function that saves a random T5 of width 16 whose words are `w0` to `w29`, labels and field names."""
    return _save_backbone


@pytest.fixture(scope="session")
def study_files(tmp_path_factory: pytest.TempPathFactory, save_tiny_backbone: Callable[[Path], None]) -> Path:
    """A tiny random T5 in `backbone/`, and rows of two sources and two targets as `rows/<task>/<split>.jsonl`."""
    root = tmp_path_factory.mktemp("study")
    save_tiny_backbone(root / "backbone")
    for task, columns in _COLUMNS.items():
        rng = random.Random(task)
        (root / "rows" / task).mkdir(parents=True)
        for split, count in _SPLITS[task].items():
            rows = [
                {
                    **{column: " ".join(rng.choices(_WORDS, k=4)) for column in columns},
                    "label": rng.randrange(2),
                    "idx": n,
                }
                for n in range(count)
            ]
            (root / "rows" / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return root


def _save_backbone(directory: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    vocabulary = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *_PIECES, *_WORDS))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 1,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        }
        model = T5ForConditionalGeneration(T5Config(vocab_size=len(vocabulary), **shape))
    model.save_pretrained(directory)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(directory)


@pytest.fixture
def make_study(study_files: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function from what differs to the config of a study whose bank and runs are in `tmp_path`."""
    from attempt_ray.config import parse

    return lambda **changes: parse([_study_page(study_files, tmp_path), changes])


def _study_page(files: Path, root: Path) -> dict[str, Any]:
    return {
        "bank": str(root / "bank"),
        "runs": str(root / "runs"),
        "backbone": {"name": str(files / "backbone")},
        "data": {
            "origin": "files",
            "root": str(files / "rows"),
            "batch_rows": 4,
            "cache_dir": str(files / "cache"),
        },
        "prompt": {"length": 3},
        "attention": {"sources": ["mnli", "sst2"], "bottleneck": 4},
        "training": {"steps": 2, "eval_steps": 1, "threads": 1},
        "evaluation": {"decode": "labels"},
        "study": {
            "targets": ["rte", "mrpc"],
            "methods": ["prompt_tuning", "spot", "spot_similar", "attempt", "attempt_mt"],
            "seeds": [1],
            "parents": {"rte": ["mnli"]},
            "prior_groups": {"text": ["mnli", "sst2"], "qa": ["squad"]},
        },
    }


@pytest.fixture(scope="session")
def source_bank(study_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank that holds the source prompts of `make_study`, and nothing else; to be copied."""
    from attempt_ray.config import parse
    from jobs.train_sources import train_sources

    root = tmp_path_factory.mktemp("sources")
    assert not train_sources(parse([_study_page(study_files, root)]), placement="here")["failed"]
    return root / "bank"


@pytest.fixture
def make_search(make_study: Callable[..., Any], source_bank: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function from what differs to the config of a short search, whose bank holds the source prompts."""
    shutil.copytree(source_bank, tmp_path / "bank")
    space = tmp_path / "space.yaml"
    space.write_text(json.dumps(_SPACE))
    search = {"space": str(space), "directory": str(tmp_path / "searches"), "trials": 3, "startup_trials": 2}

    def make(**changes: Any) -> Any:
        given = {"study": {"targets": ["rte"], "prior": False}, **changes}
        return make_study(**{**given, "search": {**search, **changes.get("search", {})}})

    return make


_SPACE = {
    "name": "short",
    "knobs": [
        {
            "key": "training.prompt_learning_rate",
            "domain": {"kind": "floats", "low": 0.03, "high": 1.0, "log": True},
        },
        {"key": "attention.start", "domain": {"kind": "choice", "values": ["source", "normal"]}},
        {"key": "training.steps", "domain": {"kind": "choice", "values": [3, 4]}},
    ],
    "known": [
        {"training.prompt_learning_rate": 0.3, "attention.start": "source", "training.steps": 4},
    ],
}
