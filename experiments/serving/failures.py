"""What a client is told when there is no answer, in the shape of OpenAI's errors."""

from typing import Any

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Failure(Exception):
    """A request that ends without an answer.

    Attributes:
        status: of HTTP.
        param: the field that is at fault.
        code: a word for programs, such as `model_not_found`.
        retry_after: seconds after which another try makes sense.
    """

    def __init__(
        self, message: str, status: int, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Refused(Failure):
    """A request that is wrong by itself."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message, status, param=param, code=code)
