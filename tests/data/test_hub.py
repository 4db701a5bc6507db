"""A data set by its name, from a server that answers as the Hub does, since no test needs a network."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

COMMIT = "a" * 40
SHARDS = [f"data/train-{i:05}-of-00003.parquet" for i in range(3)]
TEXT = "shard {} story {}: once upon a time there was a tale.\n"


def shard(number):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [TEXT.format(number, i) for i in range(100)]}), buffer)
    return buffer.getvalue()


FILES = {"README.md": b"# A data set\n"} | {path: shard(i) for i, path in enumerate(SHARDS)}


class Server(ThreadingHTTPServer):
    """Keeps the names of the files of which parts were read."""

    read: list[str]


class Hub(BaseHTTPRequestHandler):
    """What `datasets` asks about me/tales: its files, by tree and one by one."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):  # noqa: A002  (its name there)
        pass

    def answer(self, body, code=200, **headers):
        self.send_response(code)
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path, _, _ = self.path.partition("?")
        if file := re.fullmatch(r"/datasets/me/tales/resolve/[^/]+/(.+)", path):
            content = FILES.get(file[1])
            if content is None:
                self.answer(b"", 404, X_Error_Code="EntryNotFound")
            elif part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                asked = content[int(part[1]) : int(part[2]) + 1]
                assert isinstance(self.server, Server)
                self.server.read.append(file[1])
                self.answer(asked, 206, Content_Range=f"bytes {part[1]}-{part[2]}/{len(content)}")
            else:
                self.answer(content, ETag='"1"', Accept_Ranges="bytes")
        elif path == f"/api/datasets/me/tales/revision/{COMMIT}":
            self.answer(json.dumps({"id": "me/tales", "sha": COMMIT, "siblings": []}).encode())
        elif tree := re.fullmatch(rf"/api/datasets/me/tales/tree/{COMMIT}/?(.*)", path):
            folder = f"{tree[1]}/" if tree[1] else ""
            inside = {name.removeprefix(folder).split("/")[0] for name in FILES if name.startswith(folder)}
            paths = [folder + name for name in sorted(inside)]
            listed = [
                {"type": "file", "path": path, "size": len(FILES[path]), "oid": path}
                if path in FILES
                else {"type": "directory", "path": path, "oid": path}
                for path in paths
            ]
            self.answer(json.dumps(listed).encode())
        else:
            self.answer(b"", 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


PREPARES = """
import json, sys
from data import limit
from data.config import DataConfig
from data.dataset import prepare
from errors import UserError
limit.SAMPLE = 1000
for options in json.loads(sys.argv[1]):
    try:
        data = prepare(DataConfig("me/tales", "bytes", val_fraction=0.1, test_fraction=0.1, **options))
        n_tokens = sum(len(split.tokens_N) for split in (data.train, data.val, data.test))
        print(json.dumps([data.fingerprint, n_tokens]))
        assert not (data.folder / "copy.jsonl").exists()
    except UserError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def hub():
    server = Server(("127.0.0.1", 0), Hub)
    server.read = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_data_set_is_streamed_no_further_than_asked_for_and_is_known_without_the_hub(hub, tmp_path):
    home = os.environ | {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    home["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_address[1]}"

    def prepared(options, offline):
        command = [sys.executable, "-c", PREPARES, json.dumps(options)]
        env = home | {"HF_HUB_OFFLINE": "01"[offline]}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    first, everything = prepared([{"max_tokens": 3000}, {}], offline=False)
    assert first[1] == pytest.approx(3000, rel=0.01)
    assert everything[1] == len("".join(TEXT.format(i, j) for i in range(3) for j in range(100))) + 300  # separators
    assert [hub.read.count(path) for path in SHARDS[1:]] == [1, 1]  # once by the second, and not by the first
    hub.read.clear()
    known, unknown = prepared([{"max_tokens": 3000}, {"max_tokens": 2000}], offline=True)
    assert known == first
    assert "data set 'me/tales' cannot be read" in unknown
    assert "Ways out" in unknown
    assert not hub.read
    assert "parquet" not in {path.suffix for path in (tmp_path / "home").rglob("*")}  # nothing but the text is kept
