"""One site's local round: losses, optimiser, metrics."""

from fedprompt.training.local import Trained
from fedprompt.training.session import Session
from fedprompt.training.workspace import Workspace

__all__ = ["Session", "Trained", "Workspace"]
