"""Folders on a model hub, Hugging Face's or the one that HF_ENDPOINT names: hf:user/name, read and written."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError

PREFIX = "hf:"
NAME = r"[\w.-]+/[\w.-]+"
LOG_IN = "check the name, and log in with `hf auth login`, or set HF_TOKEN to a token that may {} it"


def local_folder(path: Path | str) -> Path:
    """Return a path as it is, and for hf:user/name or hf:user/name@revision the folder that it is downloaded to.

    What is there already is not downloaded again, and where the hub cannot be reached it is taken as it was last time.
    Raises InputError where there is no such folder for this user, or not all of it arrives.
    """
    if not str(path).startswith(PREFIX):
        return Path(path)
    found = re.fullmatch(f"{PREFIX}({NAME})(?:@(.+))?", str(path))
    if not found:
        raise InputError(f"{path} names no folder on the hub; write {PREFIX}user/name or {PREFIX}user/name@revision")
    from huggingface_hub import snapshot_download  # takes a second to import, and local paths do without

    with _in_one_sentence(str(path), "read"):
        return Path(snapshot_download(found[1], revision=found[2]))


def push(folder: Path, name: str, private: bool) -> str:
    """Write a folder's files into the model repository user/name, made if need be, and return the commit's address.

    `private` is for a new one only. Raises InputError where this user may not, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with _in_one_sentence(name, "write"):
        hub = HfApi()
        hub.create_repo(name, private=private, exist_ok=True)
        return hub.upload_folder(folder_path=folder, repo_id=name, commit_message="Export a model").commit_url


@contextmanager
def _in_one_sentence(name: str, right: str) -> Iterator[None]:
    """Raise InputError for whatever keeps the hub from letting this user read or write `name`."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, RevisionNotFoundError

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if isinstance(error, RevisionNotFoundError):
            problem = "the hub has it, but not this revision; name a branch, a tag or a commit behind the @"
        elif status in (401, 403, 404):
            problem = f"the hub has no such repository that you may {right} ({status}); {LOG_IN.format(right)}"
        elif status:
            problem = f"the hub answers {status}; try again later"
        else:
            problem = (
                f"the hub did not send or take all of it ({' '.join(str(error).split()):.200}); "
                "look at the network and at HF_HUB_OFFLINE, and run the same command again"
            )
        raise InputError(f"{name}: {problem}") from error
