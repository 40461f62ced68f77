"""Several base URLs: who is asked, who is asked next, and what waits."""

import asyncio
from collections import Counter

import httpx
import pytest

from beholder.client import AsyncRewardClient, RewardClient, Sample, replicas
from beholder.client.answers import Failed
from beholder.client.attempts import FIRST_WAIT_S, LONGEST_WAIT_S, Attempts, wait_s
from beholder.client.replicas import open_replicas, rendezvous
from beholder.errors import EngineError, EngineUnavailable, Overloaded, Unauthorized
from tests.pictures import png

URLS = ["http://one", "http://two", "http://three"]
KEYS = [str(number) for number in range(600)]


def test_requests_spread_evenly() -> None:
    opened = open_replicas(URLS)
    first = Counter(rendezvous(opened, key)[0].name for key in KEYS)
    assert all(150 < count < 250 for count in first.values())


def test_only_the_requests_of_a_replica_that_goes_move() -> None:
    whole, without = open_replicas(URLS), open_replicas(URLS[:2])
    for key in KEYS:
        order = [replica.name for replica in rendezvous(whole, key)]
        assert [name for name in order if name != URLS[2]] == [replica.name for replica in rendezvous(without, key)]


def test_the_order_of_the_urls_does_not_matter() -> None:
    one, other = open_replicas(URLS), open_replicas(URLS[::-1])
    for key in KEYS[:20]:
        assert [r.name for r in rendezvous(one, key)] == [r.name for r in rendezvous(other, key)]


def test_another_replica_is_asked_at_once_and_the_same_one_after_a_wait() -> None:
    order = open_replicas(URLS)
    attempts = Attempts(order, retries=1)
    waits = []
    for _ in range(6):
        attempts.next().mark_down("gone")
        waits.append(attempts.wait_s(Failed(EngineUnavailable("gone"), gone=True)))
    assert waits[:2] == waits[3:5] == [0.0, 0.0]
    assert waits[2] is not None
    assert waits[2] >= FIRST_WAIT_S / 2
    assert waits[5] is None


def test_a_replica_that_is_down_is_passed_over_until_all_are() -> None:
    one, two, three = open_replicas(URLS)
    one.mark_down("gone")
    assert Attempts([one, two, three], 0).next() is two
    two.mark_down("gone")
    three.mark_down("gone")
    assert Attempts([one, two, three], 0).next() is one


def test_waits_double_up_to_a_bound_and_never_undercut_retry_after() -> None:
    for number in range(100):
        assert FIRST_WAIT_S / 2 <= wait_s(number) <= LONGEST_WAIT_S
        assert wait_s(number, retry_after_s=3) >= 3
    assert len({wait_s(5) for _ in range(20)}) > 1


def test_no_call_waits_for_an_attempt_beyond_its_deadline() -> None:
    """It ends at once, with what the service said."""
    busy = httpx.Response(503, headers={"Retry-After": "60"}, json={"code": "overloaded", "detail": "full"})
    transport = httpx.MockTransport(lambda _: busy)
    with (
        RewardClient("http://t", deadline_s=5, transport=transport) as client,
        pytest.raises(Overloaded, match="given up after 1 attempts"),
    ):
        client.score("p", [], "r")


class Service:
    """Replicas that answer with a status each, and what they were asked."""

    def __init__(self, code: object = None, **statuses: int) -> None:
        self.code = code
        self.statuses = statuses
        self.asked: list[tuple[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        self.asked.append((host, request.method))
        status = self.statuses.get(host, 200)
        if status == 0:
            raise httpx.ConnectError("refused", request=request)
        if status != 200:
            code = {401: "unauthorized", 503: "overloaded"}.get(status, self.code)
            return httpx.Response(status, json={"code": code, "detail": "x"}, headers={"Retry-After": "0"})
        if request.method == "PUT":
            return httpx.Response(201, json={"expires_in_s": 100})
        body = {"scores": [1.0], "fingerprint": "f", "usage": {"prompt_tokens": 1, "cached_tokens": 0}}
        return httpx.Response(200, json=body)

    def posts(self) -> Counter[str]:
        return Counter(host for host, method in self.asked if method == "POST")


def client_of(service: Service, retries: int = 0) -> RewardClient:
    return RewardClient(URLS, retries=retries, transport=httpx.MockTransport(service))


def test_all_responses_to_one_prompt_go_to_one_replica_and_its_image_there_once() -> None:
    service = Service()
    with client_of(service) as client:
        for number in range(12):
            client.score("Colour?", [png()], f"response {number}")
    assert list(service.posts().values()) == [12]
    assert Counter(method for _, method in service.asked)["PUT"] == 1


def test_a_dead_replica_costs_one_failed_attempt_and_its_image_is_sent_to_the_next() -> None:
    service = Service(one=0, two=0)
    with client_of(service) as client:
        for number in range(30):
            client.score(f"prompt {number % 3}", [png()], f"response {number}")
    assert service.posts() == {"three": 30}
    assert sum(host != "three" for host, _ in service.asked) <= 2


def test_an_overloaded_replica_is_not_taken_for_dead() -> None:
    service = Service(one=503)
    with client_of(service) as client:
        for number in range(30):
            client.score(f"prompt {number}", [], "r")
    assert service.posts()["one"] > 1


@pytest.mark.anyio
async def test_one_call_finds_out_whether_a_replica_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is gone does not refuse connections: who asks it waits as long as one may take."""
    monkeypatch.setattr(replicas, "CONNECT_S", 0.3)
    monkeypatch.setattr(replicas, "DOWN_S", 0.2)
    answering = Service()

    async def answer(request: httpx.Request) -> httpx.Response:
        response = answering(request)
        if request.url.host == "one":
            await asyncio.sleep(0.3)
            raise httpx.ConnectTimeout("", request=request)
        return response

    samples = [Sample(f"prompt {number}", [], "r") for number in range(60)]
    async with AsyncRewardClient(URLS, transport=httpx.MockTransport(answer)) as client:
        await client.score_many(samples)
        await asyncio.sleep(0.25)
        answering.asked.clear()
        await client.score_many(samples)
    assert answering.posts()["one"] == 1
    assert answering.posts().total() == 61


def test_a_replica_that_answers_again_is_asked_by_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "DOWN_S", 0)
    service = Service(one=0)
    with client_of(service) as client:
        for number in range(10):
            client.score(f"prompt {number}", [], "r")
        service.statuses["one"] = 503  # overloaded: it speaks for itself
        service.asked.clear()
        for number in range(30):
            client.score(f"prompt {number}", [], "r")
    assert service.posts()["one"] > 5


@pytest.mark.parametrize(("status", "error"), [(401, Unauthorized), (429, EngineError)])
def test_a_4xx_is_not_tried_again(status: int, error: type[Exception]) -> None:
    service = Service(one=status, two=status, three=status)
    with client_of(service, retries=5) as client, pytest.raises(error):
        client.score("p", [], "r")
    assert len(service.asked) == 1


@pytest.mark.parametrize("code", ["request-timeout", None])
def test_a_body_that_came_too_slowly_is_sent_again(code: str | None) -> None:
    """A network that stalls for a minute is no mistake of the caller's; a gateway's 408 has no code."""
    service = Service(code, one=408, two=408)
    with client_of(service) as client:
        for number in range(10):
            client.score(f"prompt {number}", [], "r")
    assert service.posts()["three"] == 10


def test_a_full_service_that_is_set_to_say_429_is_asked_again() -> None:
    service = Service("overloaded", one=429, two=429, three=429)
    with client_of(service, retries=1) as client, pytest.raises(Overloaded, match="after 6 attempts"):
        client.score("p", [], "r")


@pytest.mark.parametrize("code", [None, 502, "bad-gateway", ["list"]])
def test_a_gateways_error_is_a_replicas_that_is_gone_whatever_its_code(code: object) -> None:
    service = Service(code, one=502, two=504)
    with client_of(service) as client:
        for number in range(10):
            client.score(f"prompt {number}", [], "r")
    assert service.posts()["three"] == 10
    assert service.posts()["one"] == service.posts()["two"] == 1


def test_retry_after_is_kept_for_the_replica_that_said_it() -> None:
    one, two = open_replicas(URLS[:2])
    attempts = Attempts([one, two], retries=None)
    assert attempts.next() is one
    assert attempts.wait_s(Failed(EngineUnavailable("starting"), retry_after_s=5)) == 0
    assert attempts.next() is two
    wait = attempts.wait_s(Failed(EngineUnavailable("starting"), retry_after_s=0))
    assert wait is not None
    assert wait <= FIRST_WAIT_S
    assert attempts.next() is two
    wait = attempts.wait_s(Failed(EngineUnavailable("starting"), retry_after_s=9))
    assert wait is not None
    assert 4.9 <= wait <= 5 + 2 * FIRST_WAIT_S


def test_a_replica_that_rests_is_not_asked_for_another_one_that_fails() -> None:
    one, two = open_replicas(URLS[:2])
    attempts = Attempts([one, two], retries=None)
    retry_after = {one.name: 0.0, two.name: 400.0}
    asked, waits = [], []
    for _ in range(5):
        asked.append(replica := attempts.next())
        waits.append(attempts.wait_s(Failed(EngineUnavailable("x"), retry_after[replica.name])))
    assert asked == [one, two, one, one, one]
    assert max(filter(None, waits)) <= LONGEST_WAIT_S


def test_the_log_says_once_that_a_replica_is_down_and_once_that_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    service = Service(one=0, two=0, three=0)
    with client_of(service, retries=2) as client:
        with pytest.raises(EngineUnavailable):
            client.score("p", [], "r")
        service.statuses.clear()
        client.score("p", [], "r")
    said = [record.getMessage() for record in caplog.records if record.name.startswith("beholder.client")]
    assert sum("is down: " in line for line in said) == 3
    assert sum("answers again" in line for line in said) == 1


def test_when_all_stay_dead_the_last_error_is_raised_with_the_number_of_attempts() -> None:
    service = Service(one=0, two=0, three=0)
    with client_of(service, retries=1) as client, pytest.raises(EngineUnavailable, match="after 6 attempts"):
        client.score("p", [], "r")
    assert len(service.asked) == 6
