"""What a request gets that asks for an edit wrongly: an error of ours that vLLM answers with a status of its own."""

from vllm.exceptions import VLLMNotFoundError, VLLMValidationError

from headedit.errors import HeadEditError


class RequestRefused(HeadEditError, VLLMValidationError):  # type: ignore[misc]
    """A request asks for what cannot be; over HTTP its status is 400."""


class EditNotFound(HeadEditError, VLLMNotFoundError):  # type: ignore[misc]
    """A request names an edit that is not there; over HTTP its status is 404."""
