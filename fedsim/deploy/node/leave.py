"""An owner's withdrawal: from then on nothing is answered, and what could answer is gone."""

import shutil

from fedsim.deploy import private_files
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.log import Log
from fedsim.deploy.node.summing import TOLD
from fedsim.errors import DeployError
from fedsim.machine import sync


def leave(folder: NodeFolder, *, forget: bool = False) -> list[str]:
    """Withdraw a node for good; done again, it goes on where a kill ended it.

    A node that runs refuses the next request, since it looks for the mark first. What left before cannot be taken back:
    a model keeps what it learned of the rows.

    Args:
        folder: the node's.
        forget: remove ledger, log and told statistics too, after which nobody can tell what was spent.

    Returns:
        Names of what was removed.

    Raises:
        DeployError: something cannot be written or removed.
    """
    try:
        if not folder.withdrawn:
            private_files.create(folder.left, b"")
            sync(folder.folder)
            Log(folder.log_file).write("withdrawn")
        gone = [folder.key, folder.states, folder.replies, folder.flower]
        gone += [folder.pending, folder.approved, folder.asked, folder.checked, folder.folder / "secret"]
        if forget:
            cut = folder.log_file.with_name(f"{folder.log_file.name}.cut")
            gone += [folder.ledger_file, folder.log_file, cut, folder.logs, folder.folder / TOLD]
        removed = [path for path in gone if path.exists()]
        for path in removed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        sync(folder.folder)
    except OSError as error:
        raise DeployError(f"{error.filename}: cannot be removed ({error.strerror}); run this again") from error
    return [path.name for path in removed]
