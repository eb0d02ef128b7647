"""What the service refuses, each with the HTTP status that says so."""

from data_contracts.errors import UserError


class RefusedError(UserError):
    """The request is understood and not accepted as it is."""

    status = 422


class NotThereError(RefusedError):
    """There is no such thing, or it is none of this user's business."""

    status = 404


class NotYoursError(RefusedError):
    """Somebody else has it by now, or it is done already."""

    status = 409


class TooManyAttemptsError(RefusedError):
    """Wait before the next attempt."""

    status = 429

    def __init__(self, problem: str, remedy: str, retry_after_seconds: int = 60) -> None:
        super().__init__(problem, remedy)
        self.retry_after_seconds = retry_after_seconds


class UnavailableError(RefusedError):
    """The database cannot be reached or written now; the same request may go through later."""

    status = 503
