"""One site's local round: losses, optimiser, metrics."""

from fedprompt.training.local import Trained
from fedprompt.training.material import Workspace
from fedprompt.training.session import Session

__all__ = ["Session", "Trained", "Workspace"]
