"""What a request is answered with when it is not answered: status and body as OpenAI's interface has them."""

from models.errors import VLMR3Error

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class APIError(VLMR3Error):
    """A request that cannot be answered: 4xx says what the client must change, 5xx that we failed."""

    def __init__(self, status: int, message: str, *, code: str = "", param: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    def body(self) -> dict[str, object]:
        """The JSON that OpenAI's clients turn into an exception."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": self.param or None, "code": self.code or None}
        return {"error": error}


def bad_request(message: str, *, param: str = "", code: str = "") -> APIError:
    """A 400."""
    return APIError(400, message, code=code, param=param)
