"""Exports on the Hugging Face hub: fetch one by its id, or put one there."""

import re
from pathlib import Path

from pyrskip.errors import UserError
from pyrskip.inference.bundle import NATIVE, read_bundle


def fetch(source: str, revision: str | None = None, native: bool = False) -> Path:
    """The directory of an export: itself, or a snapshot of a hub id. native: download compiled code as
    well."""
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(f"{source} is no directory, nor a hub id such as someone/gate")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(
            f"{source} is no directory; hub ids need the extra: pip install 'pyrskip[hub]'"
        ) from error
    try:
        ignored = None if native else [f"{NATIVE}/*"]
        return Path(snapshot_download(source, revision=revision, ignore_patterns=ignored))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{source} is no directory, and the hub does not give it: {' '.join(str(error).split())[:300]}"
        ) from error


def push_to_hub(directory: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload an export that is whole, and return its address. The token is huggingface_hub's own (`hf auth
    login`)."""
    read_bundle(Path(directory), native=True)
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UserError("push_to_hub needs the extra: pip install 'pyrskip[hub]'") from error
    api = HfApi()
    address = api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repository, folder_path=str(directory), commit_message="Upload an export of pyrskip"
    )
    return str(address)
