"""Publishing: whether a repository of the Hub may be written, pushes that explain themselves, and `levljepa card`.

`ModelCardMixin` gives a transformers `Trainer` the cards of `cards.py`. `prepare_push` is for scripts: it sees before
anything is loaded whether `--push_to_hub` can work.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, constants, is_offline_mode
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx, validate_repo_id
from transformers.utils import logging

from .cards import NETWORK_ERRORS, Run, as_list, first, read_config, take_figures_over, write_card

if TYPE_CHECKING:
    from transformers import TrainingArguments  # which wants the extra `train`

logger = logging.get_logger(__name__)

_NEW_TOKEN = (
    "Make one that can write at https://huggingface.co/settings/tokens, then run `hf auth login` or set HF_TOKEN."
)


def check_push(repo_id: str, token: str | bool | None = None) -> str:
    """Sees before the work whether a repository of the Hub can be written, or made.

    Args:
        repo_id: OWNER/NAME, or NAME for one of the token's user.
        token: By default the one of `hf auth login` or HF_TOKEN.

    Returns:
        The whole id, OWNER/NAME.

    Raises:
        ValueError: if that is no id.
        PermissionError: if there is no token, or it does not allow it.
        ConnectionError: if the Hub is not within reach.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no Hub id, NAME or OWNER/NAME. {error}") from None
    if is_offline_mode():
        raise ConnectionError(
            f"HF_HUB_OFFLINE is set, so nothing can be pushed to {repo_id}: unset it, or push later with `hf upload`."
        )
    try:
        return _check_push(HfApi(token=token), repo_id)
    except HfHubHTTPError:
        raise
    except httpx.HTTPError as error:
        raise ConnectionError(
            f"{constants.ENDPOINT} is not within reach ({error}), so {repo_id} can't be pushed to: look after the "
            "network, or push later with `hf upload`."
        ) from None


def _check_push(api: HfApi, repo_id: str) -> str:
    """`check_push`, once the id is one and the Hub may be asked."""
    account = _whoami(api, repo_id)
    user, access = account["name"], account.get("auth", {}).get("accessToken") or {}
    owner, name = repo_id.split("/") if "/" in repo_id else (user, repo_id)
    repo_id = f"{owner}/{name}"
    if access.get("role") == "read":
        raise PermissionError(
            f"The token {access.get('displayName', '')!r} of {user} can only read, so {repo_id} can't be pushed to. "
            f"{_NEW_TOKEN}"
        )
    owners = [user, *(one["name"] for one in account.get("orgs", ()) if one.get("roleInOrg") != "read")]
    try:
        api.auth_check(repo_id, write=True)
    except HfHubHTTPError as error:
        is_missing = isinstance(error, RepositoryNotFoundError)  # or private, and not the user's
        if not is_missing and error.response.status_code not in (401, 403):
            raise
        if not is_missing or owner.lower() not in map(str.lower, owners):
            raise PermissionError(
                f"{repo_id} is {owner}'s, and {user} may not write to it. Take another name, such as {user}/{name}: "
                f"{user} writes to repositories of {', '.join(owners)}, as far as the token allows it."
            ) from None
    return repo_id


def _whoami(api: HfApi, repo_id: str) -> dict[str, Any]:
    """Whose token it is and what it allows, as the Hub says it."""
    try:
        return api.whoami()
    except LocalTokenNotFoundError:
        raise PermissionError(
            f"Pushing to {repo_id} takes a token of the Hub, and there is none. {_NEW_TOKEN}"
        ) from None
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        raise PermissionError(
            f"The Hub does not accept the token, so {repo_id} can't be pushed to. {_NEW_TOKEN}"
        ) from None


def prepare_push(args: "TrainingArguments", at_end_only: bool = False) -> None:
    """For a script that was told `--push_to_hub`: the check before anything is loaded.

    Fills in `hub_model_id`. A token goes from the arguments to this process's environment: the arguments are saved,
    and pushed.

    Args:
        args: The training's.
        at_end_only: Whether no checkpoint is pushed on the way, whatever `hub_strategy` says: of a model with adapters
            that are merged in the end, they hold adapters, which loading would add to the merged model.

    Raises:
        ValueError, PermissionError, ConnectionError: as `check_push`.
    """
    if args.hub_token is not None:
        os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
    if at_end_only:
        args.hub_strategy = "end"
    if args.push_to_hub and args.process_index == 0:
        args.hub_model_id = check_push(args.hub_model_id or Path(args.output_dir).resolve().name)


@contextmanager
def explained_push(folder: str | os.PathLike, repo_id: str, private: bool | None = None) -> Iterator[None]:
    """Gives an upload that fails an error with the command that does it again.

    Args:
        folder: What is uploaded.
        repo_id: Where to.
        private: Whether a new repository is to be private.

    Raises:
        OSError: if it fails.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, *NETWORK_ERRORS) as error:
        command = ["hf", "upload", repo_id, str(folder), ".", "--exclude", "checkpoint-*"]
        command += ["--private"] if private else []
        reason = " ".join(str(error.__cause__ or error).split())
        raise OSError(
            f"The push to {repo_id} failed ({reason}). What is there is as it was, and what was saved is in {folder}. "
            f"To push it: {shlex.join(command)}"
        ) from error


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str = "Upload checkpoint",
    delete_patterns: Sequence[str] = (),
) -> str:
    """Pushes a folder to a repository, which is made if need be. Returns the repository's address.

    Args:
        folder: All of it goes.
        repo_id: Where it goes.
        private: Whether a new repository is private.
        token: By default the one of `hf auth login` or HF_TOKEN.
        message: Of the commit.
        delete_patterns: Files of the repository that go, unless the folder has them.

    Raises:
        OSError: if it fails; the message has the command that does it again.
    """
    api = HfApi(token=token)
    with explained_push(folder, repo_id, private):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns=list(delete_patterns) or None
        )
    return str(url)


@dataclass
class _Start:
    """The option of the scripts that says what a training starts from."""

    model_name_or_path: str | None = None


class ModelCardMixin:
    """Gives a transformers `Trainer` cards worth reading, and pushes that explain themselves when they fail.

        class ClassificationTrainer(ModelCardMixin, Trainer): ...

    `create_model_card` is called by `push_to_hub`. Call it also after the last evaluation, so that a folder that is
    not pushed has its card.
    """

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Writes the card (`README.md`) and the picture of the losses into `args.output_dir`, where the checkpoint is.

        Where no script has left them, it writes `recipe.yaml` and the trainer's state, too.

        A model that is none of LeVLJEPA's gets the card of transformers.

        Args:
            language: Of the captions, such as "en".
            license: A licence id of the Hub; by default that of the checkpoint that the training started from, if it
                states one.
            tags: Further ones.
            model_name: The name on the card of a folder that is not pushed; by default the folder's.
            finetuned_from: The checkpoint that the training started from; by default what recipe or model say.
            tasks: The pipeline tag; by default that of the model's class.
            dataset_tags: Hub ids of the data sets.
            dataset: What was trained on, as the card shows it; by default what the recipe says.
            dataset_args: Configuration of the evaluation's data set.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        try:
            read_config(folder)
        except (FileNotFoundError, ValueError):
            given = {name: value for name, value in locals().items() if name in _CARD_ARGUMENTS}
            super().create_model_card(**given)
            return
        self._take_figures_over()
        by_script = {"dataset", "mixture"} & Run.from_folder(folder).recipe.keys()
        if not by_script:  # which has left recipe, state and results
            from ..recipes import save_recipe

            model = self.accelerator.unwrap_model(self.model)
            finetuned_from = finetuned_from or getattr(model, "name_or_path", None) or ""
            save_recipe(folder, [_Start(finetuned_from or None), self.args])
            self.save_state()
        names = [*as_list(dataset), *as_list(dataset_tags)]
        write_card(
            folder,
            name=self.hub_model_id or model_name,
            license=license,
            base_model=finetuned_from,
            dataset=names[0] if names else None,
            datasets=as_list(dataset_tags),
            dataset_config=first(dataset_args),
            language=language,
            tags=as_list(tags),
            pipeline_tag=first(tasks),
            token=self.args.hub_token,
        )

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """As the base class's; the figures of the repository's card come into the folder's, which will replace it."""
        super().init_hf_repo(*args, **kwargs)
        self._take_figures_over(kwargs.get("token"))

    def _take_figures_over(self, token: str | None = None) -> None:
        if self.hub_model_id is not None and self.is_world_process_zero():
            take_figures_over(self.args.output_dir, self.hub_model_id, token or self.args.hub_token)

    def push_to_hub(self, *given: Any, **kwargs: Any) -> Any:
        """As the base class's. Pushes of checkpoints on the way that failed are counted: this one makes up for them.

        Raises:
            OSError: if it fails; what was saved stays, and the message has the command that pushes it.
        """
        args = self.args
        repo_id = self.hub_model_id or args.hub_model_id or Path(args.output_dir).resolve().name
        with explained_push(args.output_dir, repo_id, kwargs.get("private") or args.hub_private_repo):
            result = super().push_to_hub(*given, **kwargs)
        jobs = getattr(getattr(self, "push_in_progress", None), "jobs", ())
        failed = [job.exception() for job in jobs if job.done() and job.exception()]
        if failed:
            logger.warning(f"{len(failed)} of the pushes during the training failed, the last with: {failed[-1]}")
        return result


_CARD_ARGUMENTS = ("language", "license", "tags", "model_name", "finetuned_from", "tasks")
_CARD_ARGUMENTS += ("dataset_tags", "dataset", "dataset_args")


__all__ = ["ModelCardMixin", "check_push", "explained_push", "prepare_push", "push_folder"]
