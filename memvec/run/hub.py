"""A finished run as a dataset on the Hugging Face Hub, in one commit.

In: `hf://datasets/NAME`, the run's files and its manifest. Out: the dataset's repository, with them and a dataset card.

How: the commit is atomic, so nobody sees half a run. The files are uploaded before it; the Hub keeps what it has by its
content, so that after an interruption the same command uploads the rest alone. A repository that is made is private;
one that is there keeps its visibility, its card and whatever else is in it, but for another run.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from memvec.errors import ConfigError, RunFolderError
from memvec.layout import MANIFEST
from memvec.remote import open_remote, remote_errors
from memvec.run.card import dataset_card
from memvec.run.manifest import Manifest
from memvec.run.places import CANNOT
from memvec.run.remote import read_manifest_at

HUB = "hf://datasets/"
NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


class HubDataset:
    """A dataset on the Hub.

    Args:
        url: `hf://datasets/NAME`.

    Raises:
        ConfigError: It names something within a dataset, or a revision.
    """

    def __init__(self, url: str) -> None:
        self.repo_id = url.rstrip("/").removeprefix(HUB)
        if not NAME.fullmatch(self.repo_id):
            raise ConfigError("publish", url, allowed=f"{HUB}NAME or {HUB}OWNER/NAME, and nothing behind it")

    @property
    def name(self) -> str:
        """The dataset's address."""
        return f"{HUB}{self.repo_id}"

    def check(self) -> None:
        """Asks the Hub who this is, whose a dataset without an owner becomes.

        Raises:
            RunFolderError: It cannot be reached, or there is no token that it knows.
        """
        with remote_errors(self.name, kind=RunFolderError, cannot=CANNOT):
            owner = HfApi().whoami()["name"]
        if "/" not in self.repo_id:
            self.repo_id = f"{owner}/{self.repo_id}"

    def read_manifest(self) -> bytes | None:
        """Returns the manifest of the run that is there; None where there is none.

        Raises:
            RunFolderError: It cannot be asked.
        """
        return read_manifest_at(*open_remote(self.name, option="publish"), self.name)

    def commit(self, files: dict[str, Path], content: bytes, manifest: Manifest) -> bool:
        """Commits a run; returns whether it was not there yet.

        Args:
            files: Its files but for the manifest, by name.
            content: The manifest, as it is published.
            manifest: What memvec reads of it.

        Raises:
            RunFolderError: Another run is there, or the Hub refuses.
        """
        file_system, root = open_remote(self.name, option="publish")
        found = self.read_manifest()
        if found == content:
            return False
        if found is not None:
            raise RunFolderError(self.name, found="holds another run", advice="name another dataset")
        operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        operations.append(CommitOperationAdd(MANIFEST, content))
        with remote_errors(self.name, kind=RunFolderError, cannot=CANNOT):
            if not file_system.exists(f"{root}/README.md"):
                card = dataset_card(manifest, repo_id=self.repo_id)
                operations.append(CommitOperationAdd("README.md", card.encode()))
            api = HfApi()
            api.create_repo(self.repo_id, repo_type="dataset", private=True, exist_ok=True)
            api.create_commit(
                self.repo_id,
                operations,
                repo_type="dataset",
                commit_message=f"{manifest.rows:,} vectors, computed by memvec",
            )
        return True
