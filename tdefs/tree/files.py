"""The parts that open, create and bind the files of one mount, made once and put together."""

from __future__ import annotations

from tdefs.data.complaints import Complaints
from tdefs.data.forms import FileForms
from tdefs.manifest.bound import Bound
from tdefs.policy.in_use import PolicyInUse
from tdefs.tree.contents import Contents
from tdefs.tree.creating import Creator
from tdefs.tree.file_ids import SharedFileIds
from tdefs.tree.headers import Headers
from tdefs.tree.identities import Identities
from tdefs.tree.opening import Opener
from tdefs.tree.tree import Tree


class Files:
    """The files of one mount."""

    def __init__(
        self,
        tree: Tree,
        forms: FileForms,
        policy: PolicyInUse,
        complaints: Complaints,
        manifest: Bound | None = None,
    ) -> None:
        """:param manifest: ``None``: nothing is bound."""
        self.tree = tree
        self.forms = forms
        self.policy = policy
        self.complaints = complaints
        self.manifest = manifest or Bound(tree.calls)
        calls, places, unsynced_names = tree.calls, tree.places, tree.unsynced_names
        self.shared_ids = SharedFileIds(calls, tree.inodes, places)
        self.headers = Headers(calls, places, forms, policy, self.manifest, self.shared_ids)
        self.identities = Identities(
            places, unsynced_names, self.headers, policy, self.manifest, self.shared_ids, complaints
        )
        self.contents = Contents(
            calls, places, unsynced_names, forms, self.headers, self.identities, policy, self.shared_ids
        )
        self.creator = Creator(
            tree, forms, policy, self.manifest, self.shared_ids, self.identities, self.contents, complaints
        )
        self.opener = Opener(
            tree,
            forms,
            policy,
            self.manifest,
            self.headers,
            self.identities,
            self.contents,
            self.creator,
            complaints,
        )
