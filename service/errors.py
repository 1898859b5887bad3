"""Every way in which a request can fail, and what the caller can do about it.

    ServiceError
      CallerError                    the caller can mend it
        MalformedBody      400       malformed_body      not valid JSON or multipart
        BadImage           400       bad_image           not an image, or broken, or of no use here
        Unauthorized       401       unauthorized        no API key, or an unknown one
        ForeignOrigin      403       foreign_origin      another site's page wants a WebSocket
        RouteUnknown       404       not_found
        MethodUnknown      405       method_not_allowed
        NotAcceptable      406       not_acceptable      what Accept wants cannot hold the result
        UploadTooSlow      408       upload_timeout
        TooLarge           413       too_large           too many bytes or too many pixels
        UnsupportedMedia   415       unsupported_media
        InvalidField       422       invalid_field       lists every field that is wrong
        ImageUrlRefused    422       url_refused         not https, not on the list, not public
        ImageUnreachable   424       url_unreachable     another host did not give us the image
        UpgradeRequired    426       upgrade_required    a plain request where a WebSocket is
        RateLimited        429       rate_limited        with Retry-After
        ClientGone         499       disconnected        nobody is left to read the answer
      ServerError                    the caller can only try again
        InternalError      500       internal
        InferenceFailed    500       inference           on this image and expression, run alone
        QueueFull          503       queue_full          with Retry-After
        StreamsFull        503       streams_full        with Retry-After
        DeviceMemoryShort  503       out_of_memory       with Retry-After
        Draining           503       draining            with Retry-After
        EngineStopped      503       engine_stopped      with Retry-After
        DeadlineExceeded   504       deadline

Each becomes `application/problem+json` (RFC 9457) in one place, `service.app`, and is counted
there by its `reason` in `segvlm_rejected_total`. A `detail` always names the remedy. Standard
library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

PROBLEM_MEDIA_TYPE = "application/problem+json"


class ServiceError(Exception):
    """A failure that is answered as a problem; see the tree at the top of this file.

    `detail` is for the caller's eyes: what went wrong and what to do. `headers` go with the
    answer, `members` are RFC 9457 extension members of the body.
    """

    status: ClassVar[int]
    reason: ClassVar[str]
    title: ClassVar[str]

    def __init__(
        self,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = dict(members or {})

    def problem(self, request_id: str) -> dict[str, Any]:
        """The body of the answer, RFC 9457; `request_id` lets an operator find the log lines."""
        return {
            "type": f"urn:segvlm:problem:{self.reason.replace('_', '-')}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
            "request_id": request_id,
            **self.members,
        }


def _whole_seconds(seconds: float) -> str:
    """Rounded up, at least one."""
    return str(max(1, -int(-seconds // 1)))


class CallerError(ServiceError):
    """The request itself must change before it can succeed."""


class MalformedBody(CallerError):
    """The body cannot be parsed as what its Content-Type says."""

    status, reason, title = 400, "malformed_body", "The request body cannot be parsed"


class BadImage(CallerError):
    """The image's bytes are not a whole image of a format that we read."""

    status, reason, title = 400, "bad_image", "Not a readable image"


class ForeignOrigin(CallerError):
    """A page of another site opens a WebSocket, which browsers let it do with its user's rights."""

    status, reason, title = 403, "foreign_origin", "This page may not open a stream"


class Unauthorized(CallerError):
    """The request brings no API key, or one that is not in the file."""

    status, reason, title = 401, "unauthorized", "An API key is needed"

    def __init__(self, fault: str) -> None:
        super().__init__(
            f"{fault}; send `Authorization: Bearer KEY` or `X-API-Key: KEY`, with a key that the "
            "operator gave you",
            headers={"WWW-Authenticate": "Bearer"},
        )


class RouteUnknown(CallerError):
    """No route has this path."""

    status, reason, title = 404, "not_found", "Nothing at this path"


class MethodUnknown(CallerError):
    """The path exists, but not for this method."""

    status, reason, title = 405, "method_not_allowed", "Wrong method for this path"


class NotAcceptable(CallerError):
    """The Accept header asks for an answer that cannot hold the result."""

    status, reason, title = 406, "not_acceptable", "The accepted media type cannot hold the answer"


class UploadTooSlow(CallerError):
    """The body did not arrive in time; the connection is closed, half of it is still unread."""

    status, reason, title = 408, "upload_timeout", "The upload took too long"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the body did not arrive within {seconds:g} s; send a smaller image or use a faster "
            "connection (SEGVLM_UPLOAD_TIMEOUT sets the limit)",
            headers={"Connection": "close"},
        )


class TooLarge(CallerError):
    """Too many bytes or too many pixels; `limit` in the body says how many are allowed."""

    status, reason, title = 413, "too_large", "The image is too large"

    def __init__(self, detail: str, limit: int) -> None:
        super().__init__(detail, members={"limit": limit})


class UnsupportedMedia(CallerError):
    """The Content-Type or Content-Encoding of the body is none that we read."""

    status, reason, title = 415, "unsupported_media", "Unsupported media type"


class InvalidField(CallerError):
    """One or more fields are missing, unknown or out of range; all of them are listed."""

    status, reason, title = 422, "invalid_field", "A field of the request is invalid"

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        super().__init__(
            "; ".join(f"{field}: {message}" for field, message in faults),
            members={"errors": [{"field": field, "message": text} for field, text in faults]},
        )


class ImageUrlRefused(CallerError):
    """The image's URL, or one that it redirects to, leads where this service does not go."""

    status, reason, title = 422, "url_refused", "The image's URL is not allowed"


class ImageUnreachable(CallerError):
    """The host of the image's URL did not give it to us.

    Not a 5xx: neither another replica nor the operator of this service can mend it.
    """

    status, reason, title = 424, "url_unreachable", "The image cannot be fetched"

    def __init__(self, fault: str) -> None:
        super().__init__(f"{fault}; check the URL, or send the image itself")


class UpgradeRequired(CallerError):
    """A plain request, or one whose upgrade a proxy left out, where a WebSocket is spoken."""

    status, reason, title = 426, "upgrade_required", "This is a WebSocket"

    def __init__(self) -> None:
        super().__init__(
            "connect with a WebSocket client (see docs/api.md), or send single images to POST "
            "/segment; a proxy in between must pass on the headers Connection and Upgrade",
            headers={"Connection": "Upgrade", "Upgrade": "websocket"},
        )


class RateLimited(CallerError):
    """The API key has used up what it may; another request later will do."""

    status, reason, title = 429, "rate_limited", "Too many requests with this API key"

    def __init__(self, detail: str, retry_after: float) -> None:
        super().__init__(detail, headers={"Retry-After": _whole_seconds(retry_after)})


class ClientGone(CallerError):
    """The client closed the connection. The status is nginx's; only metrics and logs see it."""

    status, reason, title = 499, "disconnected", "The client closed the connection"

    def __init__(self) -> None:
        super().__init__("the connection was closed before the answer was ready; nothing to do")


class ServerError(ServiceError):
    """The request was fine; the service could not serve it."""


class InternalError(ServerError):
    """A fault of ours that nothing else describes."""

    status, reason, title = 500, "internal", "Internal error"

    def __init__(self) -> None:
        super().__init__(
            "an unexpected fault in the service; try again, and if it stays, give the operator "
            "this request_id"
        )


class InferenceFailed(ServerError):
    """The model failed on this image and expression, alone and not because of its neighbours."""

    status, reason, title = 500, "inference", "The model failed on this request"

    def __init__(self) -> None:
        super().__init__(
            "the model failed on this image and expression; try another, and give the operator "
            "this request_id"
        )


class _Overloaded(ServerError):
    """A 503 that says when to come back."""

    status = 503

    def __init__(self, detail: str, retry_after: float) -> None:
        super().__init__(detail, headers={"Retry-After": _whole_seconds(retry_after)})
        self.retry_after = int(self.headers["Retry-After"])


class QueueFull(_Overloaded):
    """More images are in flight than the queue may hold."""

    reason, title = "queue_full", "The service is overloaded"

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many images are waiting; try again after Retry-After", retry_after)


class StreamsFull(_Overloaded):
    """As many streams are open as may be."""

    reason, title = "streams_full", "Too many streams are open"

    def __init__(self, limit: int, retry_after: float = 5.0) -> None:
        super().__init__(
            f"{limit} streams are open, and no more are accepted (SEGVLM_MAX_STREAMS); try again "
            "later, or send single images to POST /segment",
            retry_after,
        )


class DeviceMemoryShort(_Overloaded):
    """The device had no memory for this request, alone and with the caches emptied."""

    reason, title = "out_of_memory", "The device is out of memory"

    def __init__(self, retry_after: float = 1.0) -> None:
        super().__init__(
            "the model's device had no memory for this request; try again after Retry-After, and "
            "if it stays, tell the operator: something else holds the device's memory",
            retry_after,
        )


class Draining(_Overloaded):
    """The process is stopping; another instance should answer."""

    reason, title = "draining", "The service is stopping"

    def __init__(self, retry_after: float = 1.0) -> None:
        super().__init__(
            "this instance is shutting down; try again after Retry-After, another instance or a "
            "restarted one will answer",
            retry_after,
        )


class EngineStopped(_Overloaded):
    """The thread that owns the model is gone; only a restart helps."""

    reason, title = "engine_stopped", "The model is not running"

    def __init__(self, fault: str | None = None) -> None:
        """`fault`: why, for whoever may know; a stranger on the network may not."""
        reason = fault or "the operator must restart the service (its log says why)"
        super().__init__(f"the model has stopped: {reason}", retry_after=10.0)


class DeadlineExceeded(ServerError):
    """No answer within the request's time."""

    status, reason, title = 504, "deadline", "The answer took too long"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"no answer within {seconds:g} s; try again later, or send a smaller image or fewer "
            "expressions, or allow more time (the header X-Request-Timeout, at most what "
            "SEGVLM_TIMEOUT says)"
        )


def problem_kinds(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """Yield every class of the tree that has a `reason` of its own."""
    if "reason" in vars(root):
        yield root
    for child in root.__subclasses__():
        yield from problem_kinds(child)
