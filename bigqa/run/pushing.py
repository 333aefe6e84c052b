"""A result on the hub. In: a model's folder, a repository's id. Out: the folder there, in one commit.

Who one is there is asked before hours of training, and what fails at the end leaves the model where it is.
"""

import os
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError, UsageError, in_a_line
from bigqa.language import tr

ENDPOINT_VARIABLE = "HF_ENDPOINT"


def _hub() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get(ENDPOINT_VARIABLE))


def check_may_push(repository: str) -> None:
    """Refuse a name that is none, and who is not known to the hub. Raises: UsageError, BigqaError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(
            tr("--push-to-hub {repository}: {error}", repository=repository, error=in_a_line(error))
        ) from None
    try:
        _hub().whoami()
    except Exception as error:  # no token, a wrong one, no network: each has an error of its own
        raise BigqaError(
            tr(
                "--push-to-hub {repository}: the hub does not let you in ({error}): log in with `hf auth "
                "login`, or set HF_TOKEN; without --push-to-hub the model is written here alone",
                repository=repository,
                error=in_a_line(error),
            )
        ) from None


def push(folder: Path, repository: str) -> str:
    """Put a model's folder on the hub; return its address. A repository that is made anew is private.

    Raises: BigqaError, with the command that tries again.
    """
    try:
        hub = _hub()
        address = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Model trained by bigqa")
    except Exception as error:
        raise BigqaError(
            tr(
                "the model is in {folder}, and not on the hub: {error}; once more: hf upload {repository} {folder}",
                folder=folder,
                error=in_a_line(error),
                repository=repository,
            )
        ) from None
    return str(address)
