"""The errors that a user sees: one sentence each, and the exit code it ends a command with."""

from __future__ import annotations

from typing import ClassVar

__all__ = ["ConfigurationError", "DataError", "FedpromptError", "RefusedError", "RunError"]


class FedpromptError(Exception):
    """Base of all errors that are meant for people.

    Args:
        message: One sentence: what, where, expected, got. May name files of this machine.
        public: The sentence that may cross the site's boundary. It names no path, file or patient;
            without it ``default_public`` of the class is sent.
    """

    exit_code: ClassVar[int] = 5
    code: ClassVar[str] = "failed"
    default_public: ClassVar[str] = "the site failed; its local log has the details"

    def __init__(self, message: str, *, public: str | None = None) -> None:
        super().__init__(message)
        self.public = public or self.default_public


class ConfigurationError(FedpromptError):
    """A study, site file or command line that cannot work."""

    exit_code = 2
    code = "configuration"
    default_public = "the site's configuration does not fit the study; its local log has the details"


class DataError(FedpromptError):
    """A case, image, mask or table that cannot be used."""

    exit_code = 3
    code = "data"
    default_public = "the site's data cannot be used; its local log has the details"


class RefusedError(FedpromptError):
    """Something that policy or the privacy budget forbids."""

    exit_code = 4
    code = "refused"
    default_public = "refused by the policy of the site"


class RunError(FedpromptError):
    """A run that cannot go on."""

    exit_code = 5
    code = "run"
