"""One look at a configured Prefect server before anything starts: whether it is one, answers, and lets us in."""

from __future__ import annotations

import contextvars
import os
import queue
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from flows.server.proxies import settle_proxies
from pipeline.errors import ConfigError
from pipeline.places.credentials import redacted

if TYPE_CHECKING:
    from httpx import Response

HEALTH_SECONDS = 10.0
"""That a server has for its answer. Prefect's client alone would ask again for nine minutes."""

ROUTE = "/flows/name/halotile-inference"
"""What is asked: cheap, of every Prefect server, and not without authentication, as `/health` is."""


def check_api(url: str, seconds: float = HEALTH_SECONDS, *, needs_more: bool = False) -> None:
    """Ask the configured server once, with what Prefect's client sends: key, authentication, headers, certificates, proxies.

    Args:
        url: Of its API.
        seconds: That it has, from the first byte to the last.
        needs_more: See `settle_proxies`.

    Raises:
        ConfigError: It does not answer, is no Prefect server, or does not let us in.
    """
    settle_proxies(url, needs_more=needs_more)
    from prefect import get_client  # noqa: F401, PLC0415 - slow; not to count as the server's time

    answers: queue.Queue[Response | Exception] = queue.Queue()
    ask = contextvars.copy_context().run  # Prefect's settings are this context's
    threading.Thread(target=ask, args=(_ask, url, seconds, answers), name="health", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)  # a limit for all of it: a client's own starts anew with each byte
    except queue.Empty:
        answer = TimeoutError()
    if problem := _problem(answer, seconds):
        raise ConfigError(
            f"Prefect's server at '{redacted(url)}', from {_origin(url)}, {problem} Nothing was started. Without a configured "
            "server a run brings its own; --no-prefect does without."
        )


def _ask(url: str, seconds: float, answers: queue.Queue[Response | Exception]) -> None:
    from httpx import HTTPError, InvalidURL  # noqa: PLC0415 - see above
    from prefect import get_client  # noqa: PLC0415 - see above
    from prefect.exceptions import PrefectHTTPStatusError  # noqa: PLC0415 - see above
    from prefect.settings import temporary_settings  # noqa: PLC0415 - see above

    try:
        with (
            temporary_settings({"api.url": url, "client.max_retries": 0}),
            get_client(sync_client=True, httpx_settings={"timeout": seconds}) as client,
        ):
            answers.put(client._client.get(ROUTE))  # what it raises, Prefect's own methods make other errors of
    except PrefectHTTPStatusError as error:
        answers.put(error.response)
    except (HTTPError, InvalidURL, OSError, RuntimeError, ValueError) as error:
        answers.put(error)


def _problem(answer: Response | Exception, seconds: float) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if isinstance(answer, Exception):
        return _no_answer(answer, seconds)
    if answer.status_code in (401, 403):
        return _refusal(answer)
    if "html" in answer.headers.get("content-type", ""):
        hint = "" if answer.url.path.startswith("/api/") else " The API of a Prefect server ends in /api."
        return f"answers with a page of HTML ({answer.status_code}): that is no Prefect API.{hint}"
    if answer.status_code >= 500 or answer.status_code in (407, 429):
        return f"answers with an error ({answer.status_code}): {_words(answer.text)}."
    if not _is_prefects(answer):
        return f"answers, but not as a Prefect API does ({answer.status_code}: {_words(answer.text)})."
    return ""


def _no_answer(error: Exception, seconds: float) -> str:
    from httpx import TimeoutException  # noqa: PLC0415 - see above

    if isinstance(error, TimeoutError | TimeoutException):
        return f"does not answer within {seconds:g} s. Start it, or correct the URL."
    if _is_of_certificates(error):
        return f"shows a certificate that is not trusted here ({_words(str(error))}). Set PREFECT_API_SSL_CERT_FILE to that of its authority."
    return f"cannot be reached ({_words(str(error)) or type(error).__name__}). Start it, or correct the URL."


def _is_of_certificates(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, ssl.SSLError) or "CERTIFICATE" in str(error))


def _refusal(answer: Response) -> str:
    from prefect.settings import get_current_settings  # noqa: PLC0415 - see above

    api = get_current_settings().api
    sent = "PREFECT_API_AUTH_STRING" if api.auth_string else "PREFECT_API_KEY" if api.key else ""
    if sent:
        return f"does not accept what {sent} says ({answer.status_code}). Correct it."
    return (
        f"asks who we are ({answer.status_code}), and neither PREFECT_API_AUTH_STRING (a server of one's own) nor "
        "PREFECT_API_KEY (Prefect Cloud) is set. Set the one that it takes."
    )


def _is_prefects(answer: Response) -> bool:
    """Whether it is a flow, or the news that there is no such flow yet."""
    try:
        content = answer.json()
    except ValueError:
        return False
    if not isinstance(content, dict):
        return False
    return (
        "id" in content
        if answer.is_success
        else content.get("detail", content.get("message")) not in (None, "Not Found")
    )


def _words(text: str) -> str:
    return redacted(" ".join(text.split()))[:200]


def _origin(url: str) -> str:
    """Who names the URL: a variable, a file, a profile."""
    if os.environ.get("PREFECT_API_URL") == url:
        return "the variable PREFECT_API_URL"
    from prefect.settings import get_current_settings  # noqa: PLC0415 - see above

    for path in (Path(".env"), Path("prefect.toml"), Path("pyproject.toml")):
        if path.is_file() and url in path.read_text("utf-8", "replace"):
            return f"the file '{path.resolve()}'"
    return f"the active profile in '{get_current_settings().profiles_path}'"
