"""What the exceptions of real libraries say, raised by real servers that refuse, hang, drop and answer, and by ports where nobody listens."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import botocore.config  # type: ignore[import-untyped]
import botocore.exceptions  # type: ignore[import-untyped]
import botocore.session  # type: ignore[import-untyped]
import httpx
import httpx2
import openai
import pytest
import requests
import requests.adapters
import stripe
import urllib3
from tests.support.scripted_gateway import Script, drops, hangs, says, serving

from agent_outbox.classify import Classified, NotSent, Rejected, classify

Send = Callable[[str], object]


@pytest.fixture
def closed() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


def caught(send: Send, url: str) -> BaseException:
    """What a request raises."""
    with pytest.raises(BaseException) as found:  # noqa: PT011
        send(url)
    return found.value


def of(send: Send, script: Script, *scripts: Script, **options: bool) -> Classified:
    """What the exception of a request against a server with these scripts says."""
    with serving(script, *scripts) as server:
        return classify(caught(send, server.url), **options)


# Each library's way to make one mutating request.


def by_httpx(url: str) -> object:
    """httpx, with a short time-out."""
    return httpx.post(url, json={}, timeout=0.5).raise_for_status()


def by_httpx2(url: str) -> object:
    """httpx2."""
    return httpx2.post(url, json={}, timeout=0.5).raise_for_status()


def by_httpx_redirected(url: str) -> object:
    """httpx that follows redirects."""
    return httpx.post(url, json={}, timeout=0.5, follow_redirects=True).raise_for_status()


def by_requests(url: str) -> object:
    """requests."""
    response = requests.post(url, json={}, timeout=0.5)
    response.raise_for_status()
    return response


def by_requests_retrying(url: str) -> object:
    """requests with urllib3's retries for every method."""
    session = requests.Session()
    retry = urllib3.Retry(total=2, backoff_factor=0.01, allowed_methods=None, status_forcelist=[503], raise_on_status=False)
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
    response = session.post(url, json={}, timeout=0.5)
    response.raise_for_status()
    return response


def stripe_client(retries: int) -> Callable[[str], object]:
    """stripe with so many retries of its own."""

    def send(url: str) -> object:
        http = stripe.RequestsClient(timeout=0.5)
        client = stripe.StripeClient("sk_test_1", base_addresses={"api": url}, http_client=http, max_network_retries=retries)
        return client.v1.refunds.create({"payment_intent": "pi_1", "amount": 1200})

    return send


def openai_client(retries: int) -> Callable[[str], object]:
    """openai with so many retries of its own."""

    def send(url: str) -> object:
        client = openai.OpenAI(api_key="k", base_url=url, max_retries=retries, timeout=0.5)
        return client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])

    return send


def anthropic_client(retries: int) -> Callable[[str], object]:
    """anthropic with so many retries of its own."""

    def send(url: str) -> object:
        client = anthropic.Anthropic(api_key="k", base_url=url, max_retries=retries, timeout=0.5)
        return client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}])

    return send


def botocore_client(attempts: int, **keys: str) -> Callable[[str], object]:
    """botocore with so many attempts."""

    def send(url: str) -> object:
        config = botocore.config.Config(
            retries={"total_max_attempts": attempts, "mode": "standard"}, connect_timeout=0.5, read_timeout=0.5
        )
        client = botocore.session.Session().create_client(
            "sqs",
            region_name="eu-central-1",
            endpoint_url=url,
            config=config,
            **(keys or {"aws_access_key_id": "k", "aws_secret_access_key": "s"}),
        )
        return client.send_message(QueueUrl=f"{url}/queue", MessageBody="x")

    return send


ONE_TRY = [
    pytest.param(by_httpx, {}, id="httpx"),
    pytest.param(by_httpx2, {}, id="httpx2"),
    pytest.param(by_requests, {}, id="requests"),
    pytest.param(openai_client(0), {}, id="openai"),
    pytest.param(anthropic_client(0), {}, id="anthropic"),
    pytest.param(stripe_client(0), {"single_try": True}, id="stripe"),
    pytest.param(botocore_client(1), {"single_try": True}, id="botocore"),
]
RETRYING = [
    pytest.param(by_requests_retrying, id="requests"),
    pytest.param(openai_client(1), id="openai"),
    pytest.param(anthropic_client(1), id="anthropic"),
    pytest.param(stripe_client(1), id="stripe"),
    pytest.param(botocore_client(2), id="botocore"),
]


@pytest.mark.parametrize(("send", "options"), ONE_TRY)
def test_a_refused_connection_is_unsent(send: Send, options: dict[str, bool], closed: str) -> None:
    """Where nobody listens and the library tried once, nothing was sent."""
    assert classify(caught(send, closed), **options).outcome == "unsent"


@pytest.mark.parametrize("send", RETRYING)
def test_a_refused_connection_after_hidden_tries_is_unknown(send: Send, closed: str) -> None:
    """Where the library may have tried before, the last refused connection says nothing of the first try."""
    assert classify(caught(send, closed)).outcome == "unknown"


@pytest.mark.parametrize("fails", [drops, hangs], ids=["dropped", "hangs"])
@pytest.mark.parametrize(("send", "options"), ONE_TRY)
def test_a_lost_reply_is_unknown(send: Send, options: dict[str, bool], fails: Script) -> None:
    """A connection that breaks or stays silent after the request was sent proves nothing."""
    assert of(send, fails, **options).outcome == "unknown"


@pytest.mark.parametrize("status", [408, 409, 412, 500, 502, 503])
@pytest.mark.parametrize("send", [by_httpx, by_httpx2, by_requests, openai_client(0), anthropic_client(0), botocore_client(1)])
def test_statuses_that_may_stand_for_an_effect_are_unknown(send: Send, status: int) -> None:
    """A time-out, a conflict, a failed condition and every server error prove nothing."""
    said = of(send, says(status, {"error": {"message": "x"}}))
    assert said.outcome == "unknown"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
@pytest.mark.parametrize("send", [by_httpx, by_httpx2, by_requests, openai_client(0), anthropic_client(0), botocore_client(1)])
def test_a_refusal_of_the_only_try_is_rejected(send: Send, status: int) -> None:
    """A client error answers the one request that was made."""
    said = of(send, says(status, {"error": {"message": "secret words", "type": "invalid_request_error"}}))
    assert (said.outcome, said.provider_status) == ("rejected", status)
    assert "secret words" not in repr(said)


@pytest.mark.parametrize("send", [by_httpx, by_httpx2, by_requests, openai_client(0), anthropic_client(0)])
def test_a_limiter_defers(send: Send) -> None:
    """429 is a refusal to begin."""
    assert of(send, says(429, {"error": {"message": "slow down"}})).outcome == "deferred"


@pytest.mark.parametrize("send", [openai_client(1), anthropic_client(1), by_requests_retrying, botocore_client(2)])
def test_a_refusal_after_a_hidden_try_is_unknown(send: Send) -> None:
    """The first try is cut off or fails inside the provider, the library tries again and is refused: the first stays unknown."""
    refused = says(400, {"error": {"message": "x"}})
    assert of(send, says(503, {"error": {"message": "x"}}), refused).outcome == "unknown"


# Stripe, whose answers speak for the idempotency key.


def stripe_error(status: int, type: str, code: str | None = None) -> Script:
    """An error as Stripe writes it."""
    return says(status, {"error": {"type": type, "code": code, "message": "Your card was declined."}})


@pytest.mark.parametrize("retries", [0, 2])
def test_a_declined_card_is_rejected(retries: int) -> None:
    """A CardError is an answer for the key, whatever was tried before; the code is kept, the words are not."""
    said = of(stripe_client(retries), stripe_error(402, "card_error", "card_declined"))
    assert (said.outcome, said.provider_status, said.provider_code) == ("rejected", 402, "card_declined")
    assert "declined." not in repr(said)
    assert said.reason == "stripe.CardError"


@pytest.mark.parametrize(
    ("status", "type", "outcome", "with_single_try"),
    [
        (400, "invalid_request_error", "rejected", "rejected"),
        (404, "invalid_request_error", "rejected", "rejected"),
        (400, "idempotency_error", "unknown", "unknown"),
        (401, "invalid_request_error", "unknown", "deferred"),
        (403, "invalid_request_error", "unknown", "rejected"),
        (409, "invalid_request_error", "unknown", "deferred"),
        (429, "invalid_request_error", "unknown", "deferred"),
        (500, "api_error", "unknown", "unknown"),
    ],
)
def test_stripes_other_errors(status: int, type: str, outcome: str, with_single_try: str) -> None:
    """What comes before Stripe looks at the key speaks for one try only; a key used with other parameters is an effect forgotten."""
    assert of(stripe_client(0), stripe_error(status, type)).outcome == outcome
    assert of(stripe_client(0), stripe_error(status, type), single_try=True).outcome == with_single_try


def test_without_an_api_key_nothing_is_sent() -> None:
    """stripe and botocore refuse by themselves to send without credentials."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stripe, "api_key", None)
        assert classify(caught(lambda _: stripe.Refund.create(payment_intent="pi_1"), "")).outcome == "unsent"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")

        def send(url: str) -> object:
            client = botocore.session.Session().create_client("sqs", region_name="eu-central-1", endpoint_url=url)
            return client.send_message(QueueUrl=f"{url}/queue", MessageBody="x")

        assert classify(caught(send, "http://127.0.0.1:9")).outcome == "unsent"


def test_parameters_that_botocore_refuses_are_unsent() -> None:
    """What does not fit the service's model is refused before a request is made of it."""

    def send(url: str) -> object:
        keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
        client = botocore.session.Session().create_client("sqs", region_name="eu-central-1", endpoint_url=url, **keys)
        return client.send_message(QueueUrl=7)

    assert classify(caught(send, "http://127.0.0.1:9")).outcome == "unsent"


def test_aws_throttling_defers_and_its_doubts_stay() -> None:
    """Throttling codes are deferred; a request time-out and a reused token are unknown, though their status is 400."""

    def aws(code: str) -> Script:
        return says(400, {"__type": f"com.amazonaws.sqs#{code}", "message": "x"})

    assert of(botocore_client(1), aws("ThrottlingException")).outcome == "deferred"
    assert of(botocore_client(1), aws("RequestTimeout")).outcome == "unknown"
    assert of(botocore_client(1), aws("IdempotentParameterMismatch")).outcome == "unknown"
    said = of(botocore_client(1), aws("QueueDoesNotExist"))
    assert (said.outcome, said.provider_status) == ("rejected", 400)


def test_a_key_used_with_other_parameters_is_unknown_whatever_its_status() -> None:
    """Stripe's newer API may write an idempotency error with 409; it is an effect that was forgotten, not a key in use."""
    said = classify(stripe.IdempotencyError("x", http_status=409), single_try=True)
    assert said.outcome == "unknown"


# Redirects.


@pytest.mark.parametrize("send", [by_httpx_redirected, by_requests], ids=["httpx", "requests"])
def test_what_was_redirected_is_unknown(send: Send, closed: str) -> None:
    """The first server may have done it before it pointed elsewhere, where nobody listens or the answer is 404."""
    assert of(send, says(303, b"", Location=closed)).outcome == "unknown"
    assert of(send, says(303, b"", Location="/other"), says(404, {})).outcome == "unknown"


# Words of the handler's own, and everything else.


def test_a_handler_may_know() -> None:
    """NotSent is unsent; Rejected is rejected with its code and status."""
    assert classify(NotSent("the form was empty")).outcome == "unsent"
    said = classify(Rejected("no such seat", code="seat_taken", status=409))
    assert (said.outcome, said.provider_code, said.provider_status) == ("rejected", "seat_taken", 409)
    assert classify(Rejected("x", code="not one plain word")).provider_code is None


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        ConnectionResetError(),
        TimeoutError(),
        KeyboardInterrupt(),
        SystemExit(1),
        asyncio.CancelledError(),
        MemoryError(),
        httpx.ReadTimeout("x"),
        httpx.WriteError("x"),
        httpx.RemoteProtocolError("x"),
        requests.ConnectionError("Connection aborted."),
        requests.ConnectionError(),
        requests.HTTPError("without a response"),
        botocore.exceptions.ClientError({}, "SendMessage"),
        openai.OpenAIError("x"),
        stripe.APIConnectionError("x"),  # type: ignore[no-untyped-call]
    ],
    ids=lambda error: type(error).__name__,
)
def test_everything_else_is_unknown(error: BaseException) -> None:
    """What is in no list proves nothing, and its words are not kept."""
    for single_try in (False, True):
        said = classify(error, single_try=single_try)
        assert (said.outcome, said.provider_status, said.provider_code) == ("unknown", None, None)
        assert said.reason.endswith(type(error).__name__)


def test_an_error_that_wraps_another_is_unknown(closed: str) -> None:
    """A handler's own exception says nothing, whatever it came from."""

    def send(url: str) -> Any:
        try:
            return by_httpx(url)
        except httpx.ConnectError as error:
            raise RuntimeError("no luck") from error

    assert classify(caught(send, closed)).outcome == "unknown"
