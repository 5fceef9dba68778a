"""One connection to a server that speaks the OpenAI HTTP API.

Knows: keys, retries, and what goes wrong between here and there, in a person's words. Does not know what is asked. Nothing
of a request or an answer stands in an error; only our own server's words are passed on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from cafe_kit.errors import CafeError

OURS = "cafe-au-lait"  # what our server answers as the owner of its models
TIMEOUT_S = 1800.0  # for one request; our server may have a queue
Obituary = Callable[[], CafeError | None]


class Endpoint:
    """One connection to an OpenAI-compatible server; what goes wrong there becomes a ``CafeError``."""

    def __init__(self, base_url: str, api_key: str, obituary: Obituary = lambda: None) -> None:
        from openai import DefaultHttpxClient, OpenAI, Timeout

        self.url = base_url.rstrip("/").removesuffix("/v1")
        self._obituary = obituary
        local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        self._client = OpenAI(
            base_url=f"{self.url}/v1",
            api_key=api_key or "none",
            timeout=Timeout(TIMEOUT_S, connect=10.0),
            max_retries=2,
            http_client=DefaultHttpxClient(trust_env=not local),  # a proxy must not see what stays on this machine
        )

    def get(self, path: str) -> dict[str, Any]:
        return self._json(self._ask(lambda: self._client.get(f"{self.url}{path}", cast_to=object)))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._json(self.tell(path, body))

    def tell(self, path: str, body: dict[str, Any]) -> Any:
        """Post something whose answer is of no interest, and may be no JSON."""
        return self._ask(lambda: self._client.post(f"{self.url}{path}", body=body, cast_to=object))

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Post something that is answered by server-sent events. Closing the iterator hangs up, and the server stops working."""
        from openai import Stream

        url, kind = f"{self.url}{path}", Stream[object]
        opened = self._ask(lambda: self._client.post(url, body={**body, "stream": True}, cast_to=object, stream=True, stream_cls=kind))
        if not isinstance(opened, Stream):
            raise self._no_api()
        with opened:
            try:
                for event in opened:
                    yield self._json(event)
            except CafeError:
                raise
            except Exception as error:
                raise self._obituary() or self._broken_off(error) from None

    def _json(self, answer: Any) -> dict[str, Any]:
        if isinstance(answer, dict):
            return answer
        raise self._no_api()

    def _broken_off(self, error: Exception) -> CafeError:
        told = getattr(error, "body", None)
        if isinstance(told, dict):
            return _refusal(self.url, 200, told)
        return CafeError("CAFE-501", f"The model server at {self.url} broke off in the middle of an answer.", "Ask again.")

    def _no_api(self) -> CafeError:
        return CafeError(
            "CAFE-501", f"What answers at {self.url} does not speak the OpenAI HTTP API.", "Check the address in the settings."
        )

    def _ask(self, call: Callable[[], Any]) -> Any:
        import openai

        try:
            return call()
        except openai.APIConnectionError as error:
            late = isinstance(error, openai.APITimeoutError)
            what = f"gave no answer within {TIMEOUT_S:.0f} s" if late else "cannot be reached"
            raise self._obituary() or CafeError(
                "CAFE-501", f"The model server at {self.url} {what}.", "Check that it runs and that the address in the settings is right."
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            raise CafeError(
                "CAFE-502", f"The model server at {self.url} refused the key.", "Put the server's API key into the settings."
            ) from None
        except openai.APIStatusError as error:
            raise self._obituary() or _refusal(self.url, error.status_code, error.body) from None
        except (openai.OpenAIError, ValueError):
            return None  # no JSON in an answer that says it is


def _refusal(url: str, status: int, body: object) -> CafeError:
    """What a server's error answer says; only our own server's words are passed on, another's may repeat a prompt."""
    told = body if isinstance(body, dict) else {}
    if re.fullmatch(r"CAFE-\d{3}", str(told.get("code"))):
        return CafeError(told["code"], str(told.get("message", "")), str(told.get("hint", "")))
    return CafeError("CAFE-509", f"The model server at {url} refused the request (HTTP {status}).", "Its own log says why.")
