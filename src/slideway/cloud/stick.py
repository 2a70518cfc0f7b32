"""Invite a node that has no line: an invitation in a folder, pinned by the code that travels on another way."""

from __future__ import annotations

from pathlib import Path

from slideway.cloud.init import CloudFolder
from slideway.core.files import write_whole
from slideway.sync.invitation import Invitation, pin_content


def write_invitation(folder: Path, own: CloudFolder, *, tenant: str, node: str, code: str) -> tuple[str, Path]:
    """Write the invitation of a node without a line; the code that its operator types, and the file.

    The file holds no secret; the second half of the code is its hash, so that nobody can change it on the way.

    Args:
        folder: On the stick.
        own: Of the cloud.
        tenant: Whose node.
        node: Its id.
        code: What `invite_node` gave.

    Raises:
        OSError: The folder cannot be written.
    """
    invitation = Invitation(tenant, node, own.keys.public_key, own.keys.receiving_key, own.ca_pem.decode("ascii"))
    path = folder / invitation.file_name
    write_whole(path, invitation.content)
    return f"{code.partition('.')[0]}.{pin_content(invitation.content)}", path
