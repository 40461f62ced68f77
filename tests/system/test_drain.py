"""Two replicas behind nginx, 64 concurrent clients; replicas are stopped by SIGTERM and killed by SIGKILL in turn.

Through SIGTERM nothing is lost: no client even has to try again. Through SIGKILL at most what was in flight fails once,
and the clients' retries recover it. BEHOLDER_DRAIN_SECONDS sets how long it runs.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.system.programs import Replica, answers, free_port, program, running, two_replicas, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(400)]
CLIENTS = 64
SECONDS = float(os.environ.get("BEHOLDER_DRAIN_SECONDS", "20"))
ATTEMPTS = 5
ENGINE = "{delay_s: 0.3, jitter_s: 0.4}"
NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream beholder {{
        server 127.0.0.1:{first} {server};
        server 127.0.0.1:{second} {server};
        keepalive 64;
    }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 128m;
        location / {{
            proxy_pass http://beholder;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_read_timeout 330s;
            {next_upstream}
        }}
    }}
}}
"""
HELPFUL = {"next_upstream": "proxy_next_upstream error timeout http_503 non_idempotent;", "server": "max_fails=0"}
"""Every request may try the other replica. With max_fails nginx would at times take both for dead and answer 502."""
PLAIN = {"next_upstream": "proxy_next_upstream off;", "server": "max_fails=1 fail_timeout=1s"}
"""The client alone recovers."""


@dataclass
class Log:
    """What the clients met. `retried` has each failed attempt."""

    sent: int = 0
    answered: int = 0
    wrong: int = 0
    lost: list[str] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)
    kills: int = 0


async def ask(http: httpx.AsyncClient, prompt: str, log: Log) -> float | None:
    """One sample's score, tried again after a moment where that may help."""
    failure = ""
    for attempt in range(ATTEMPTS):
        try:
            answer = await http.post("/score", json={"prompt": prompt, "response": "r"})
            if answer.status_code == 200:
                score: float = answer.json()["scores"][0]
                return score
            failure = f"{answer.status_code} {answer.headers['content-type']}"
            if answer.status_code not in (502, 503, 504):
                break
        except httpx.TransportError as error:
            failure = repr(error)
        log.retried.append(failure)
        await asyncio.sleep(0.2 * 2**attempt)
    log.lost.append(failure)
    return None


async def client(number: int, url: str, stop: asyncio.Event, log: Log) -> None:
    """Asks one thing after another; the same prompt must always get the same score."""
    known: dict[str, float] = {}
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        while not stop.is_set():
            prompt = f"{number} {log.sent % 7}"
            log.sent += 1
            score = await ask(http, prompt, log)
            if score is not None:
                log.answered += 1
                log.wrong += known.setdefault(prompt, score) != score


async def stop_in_turn(replicas: list[Replica], numbers: list[signal.Signals], seconds: float) -> list[str]:
    """End one replica after another, by the signals in turn, and start each again; what happened."""
    end = time.monotonic() + seconds
    events: list[str] = []
    for turn in range(1000):
        if time.monotonic() > end and turn >= len(numbers):
            return events
        replica, number = replicas[turn % len(replicas)], numbers[turn % len(numbers)]
        replica.process.send_signal(number)
        status = await asyncio.to_thread(replica.process.wait, 60)
        assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL), replica.log.read_text()
        replica.start()
        await asyncio.to_thread(replica.wait_ready)
        # nginx tries a replica again a second after it failed.
        await asyncio.sleep(1.5)
        events.append(f"{number.name} of {replica.port}")
    raise AssertionError("unreachable")


async def clients_while(url: str, replicas: list[Replica], numbers: list[signal.Signals], seconds: float) -> Log:
    log, stop = Log(), asyncio.Event()
    asking = [asyncio.ensure_future(client(number, url, stop, log)) for number in range(CLIENTS)]
    await asyncio.sleep(1)
    try:
        events = await stop_in_turn(replicas, numbers, seconds)
    finally:
        stop.set()
        await asyncio.gather(*asking)
    log.kills = sum(event.startswith("SIGKILL") for event in events)
    print(f"\n{', '.join(events)}: {log.sent} requests, {log.answered} answered, {len(log.retried)} tried again")
    for failure in log.retried[:5]:
        print("  ", failure)
    return log


@pytest.fixture(scope="module")
def replicas(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    folder = tmp_path_factory.mktemp("replicas")
    flags = ("--drain-delay-s", "1", "--drain-timeout-s", "20")
    with two_replicas(tiny_checkpoint, folder, ENGINE, *flags) as both:
        yield both


@contextmanager
def nginx(replicas: list[Replica], folder: Path, options: dict[str, str]) -> Iterator[str]:
    """nginx in front of the replicas; its URL."""
    port = free_port()
    config = NGINX.format(folder=folder, port=port, first=replicas[0].port, second=replicas[1].port, **options)
    (folder / "nginx.conf").write_text(config)
    command = [program("nginx"), "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "start.log")]
    with running(command, folder / "log"):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/livez"), "nginx answers")
        yield url


def test_sigterm_loses_nothing_and_retries_recover_sigkill(
    replicas: list[Replica], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled(), nginx(replicas, tmp_path, HELPFUL) as url:
        gentle = asyncio.run(clients_while(url, replicas, [signal.SIGTERM], SECONDS / 2))
        rough = asyncio.run(clients_while(url, replicas, [signal.SIGKILL, signal.SIGTERM], SECONDS / 2))
    for log in (gentle, rough):
        assert not log.lost
        assert log.answered == log.sent > CLIENTS
        assert not log.wrong
    assert not gentle.retried
    assert len(rough.retried) <= CLIENTS * rough.kills


def test_without_help_from_nginx_a_kill_fails_only_what_was_in_flight(
    replicas: list[Replica], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled(), nginx(replicas, tmp_path, PLAIN) as url:
        log = asyncio.run(clients_while(url, replicas[:1], [signal.SIGKILL], 0))
    assert not log.lost
    assert log.answered == log.sent
    assert not log.wrong
    assert 0 < len(log.retried) <= CLIENTS * log.kills
