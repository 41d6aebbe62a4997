"""source: HF, a repository of the Hugging Face hub. huggingface_hub downloads into its own cache, and resumes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from briton.errors import BuildError
from briton_engine_builder.hf_checkpoint import ADAPTER_CONFIG, ADAPTER_MODEL, CONFIG
from briton_engine_builder.safetensors_reader import INDEX
from briton_engine_builder.sources.fetched import FetchedCheckpoint
from briton_engine_builder.sources.model_files import needed_files

logger = logging.getLogger(__name__)

_ATTEMPTS = 5  # at a download that breaks in the middle


def fetch_from_hub(repo: str, revision: str | None, *, token: str | None, progress: bool) -> FetchedCheckpoint:
    """The files of a repository that an engine is built from; `revision` is a branch, tag or commit. Raises BuildError.

    Without network, a snapshot that is in the hub's cache already is taken as it is.
    """
    with _progress_bars(progress and sys.stderr.isatty()), one_line_errors(repo, revision):
        try:
            info = huggingface_hub.HfApi(token=token).model_info(repo, revision=revision)
        except errors.HfHubHTTPError:
            raise  # the hub has answered
        except Exception as unreachable:  # which library's error this is depends on huggingface_hub's release
            snapshot = _cached_snapshot(repo, revision)
            if snapshot is None:
                raise
            logger.warning(
                "the Hugging Face hub cannot be reached (%s): using %s", type(unreachable).__name__, snapshot
            )
        else:
            needed = needed_files(repo, [sibling.rfilename for sibling in info.siblings or []])
            logger.info("fetching %s at %s from the Hugging Face hub", repo, (info.sha or "")[:12])
            # by the name it was asked for, which the hub's cache then knows without network
            snapshot = _download(repo, revision, token, needed)
    commit = snapshot.name
    ggufs = sorted(snapshot.glob("*.gguf"))
    path = ggufs[0] if ggufs and not (snapshot / CONFIG).is_file() else snapshot
    return FetchedCheckpoint(path, f"HF {repo} {commit}", {"source": "HF", "repo": repo, "revision": commit})


def _download(repo: str, revision: str | None, token: str | None, needed: list[str]) -> Path:
    """The snapshot. Releases of huggingface_hub before 1.0 give up on a connection that breaks in the middle of a file;
    called again, they go on there."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            return Path(huggingface_hub.snapshot_download(repo, revision=revision, token=token, allow_patterns=needed))
        except Exception as error:  # requests' error, which newer releases do not have
            if type(error).__name__ != "ChunkedEncodingError" or not left:
                raise
            logger.warning("the download of %s broke off: going on", repo)
    raise AssertionError("the last attempt returns or raises")


def _cached_snapshot(repo: str, revision: str | None) -> Path | None:
    try:
        # newer releases of huggingface_hub check that these are complete; for older ones, opening the checkpoint does
        patterns = [CONFIG, INDEX, "model*.safetensors", ADAPTER_CONFIG, ADAPTER_MODEL]
        return Path(
            huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=patterns)
        )
    except errors.LocalEntryNotFoundError:
        return None


@contextmanager
def one_line_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Whatever huggingface_hub raises, as a BuildError that says what to do."""
    try:
        yield
    except BuildError:
        raise
    except errors.GatedRepoError as error:
        raise BuildError(
            f"{repo} is gated: accept its terms on the hub, and give a token of that account (HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BuildError(f"{repo} has no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise BuildError(
            f"{repo} does not exist on the Hugging Face hub, or needs a token that may read it (HF_TOKEN)"
        ) from error
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:  # a file that "cannot be located" began as a connection that was refused
            root = root.__cause__
        reason = next((line for line in str(root).splitlines() if line.strip()), "no reason given")
        raise BuildError(f"cannot fetch {repo} from the Hugging Face hub: {type(root).__name__}: {reason}") from error


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """huggingface_hub draws its own bars; off where nobody looks at a terminal."""
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
