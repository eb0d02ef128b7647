"""Whatever dies, the page is back, and nothing of it is left when nobody starts it again."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from annotation_server import Server, children_of

from annotation.storage.database import sqlite_url
from annotation.web import handover
from annotation.web.serving import listen
from data_contracts.errors import UserError


@pytest.fixture
def server(tmp_path):
    server = Server(sqlite_url(tmp_path / "annotation.db"))
    server.start()
    yield server
    server.kill()


def test_a_request_that_comes_while_nothing_serves_is_answered_and_not_refused(server):
    victim = server.serving_process()
    os.kill(victim, signal.SIGKILL)
    assert httpx.get(f"{server.url}/healthz", trust_env=False).status_code == 200  # no retry
    assert server.serving_process() != victim


def test_what_serves_outlives_what_listens_and_hands_the_socket_to_the_next(server):
    predecessor = server.serving_process()
    answers, stop = [], threading.Event()

    def ask_again_and_again():
        while not stop.is_set():
            # what is on its way as the predecessor closes a connection, has to be sent again; to be
            # refused one (ConnectError) ends this thread, and the test
            with suppress(httpx.RemoteProtocolError, httpx.ReadError):
                answers.append(httpx.get(f"{server.url}/healthz", trust_env=False).status_code)

    asking = threading.Thread(target=ask_again_and_again)
    asking.start()
    server.kill_listening()
    server.start()
    wait_for_end(predecessor)
    asked_meanwhile = len(answers)
    httpx.get(f"{server.url}/healthz", trust_env=False)
    stop.set()
    asking.join()
    assert asked_meanwhile > 1
    assert set(answers) == {200}
    assert server.serving_process() != predecessor


def test_what_serves_does_not_wait_for_ever_for_what_listens(server):
    serving = server.serving_process()
    server.kill_listening()
    assert httpx.get(f"{server.url}/healthz", trust_env=False).status_code == 200
    wait_for_end(serving)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url}/healthz", trust_env=False)


def test_a_socket_is_handed_on_until_somebody_serves_on_it():
    """A successor that dies before it serves leaves the socket to the next."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        offering = threading.Thread(target=handover.offer, args=(listener,))
        offering.start()
        for is_last in (False, True):
            taken, predecessor = taken_from(*address)
            with taken:
                assert taken.getsockname() == address
                assert offering.is_alive()
                if is_last:
                    handover.is_served(predecessor)
                predecessor.close()
        offering.join(5)
        assert not offering.is_alive()
        assert handover.take(*address, socket.AF_INET) is None


def taken_from(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    deadline = time.monotonic() + 5
    while not (taken := handover.take(host, port, socket.AF_INET)):
        assert time.monotonic() < deadline, "nobody offers the socket"
        time.sleep(0.01)
    return taken


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_processes_end_when_they_are_asked_to(tmp_path, number):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["flows.cli", "annotations", "serve", "--port", str(port), "--home", str(tmp_path)]
    page = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL)
    try:
        patient = httpx.HTTPTransport(retries=10)
        with httpx.Client(transport=patient, trust_env=False, timeout=60) as client:
            assert client.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        (child,) = children_of(page.pid)
        page.send_signal(number)
        assert page.wait(30) == 0
    finally:
        page.kill()
        page.wait()
    wait_for_end(child)


def test_a_request_whose_body_never_comes_does_not_hold_up_the_end(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"POST /login HTTP/1.1\r\nHost: page\r\nContent-Length: 100\r\n\r\n")
        time.sleep(0.5)
        server.ask_to_end()
        deadline = time.monotonic() + 60
        while not is_refused(server.port):  # at once, not when the last one has had his answer
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.wait_for_end(60)


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_port_that_is_taken_is_a_user_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: Address already in use"):
            listen("127.0.0.1", port)


def test_a_port_that_is_being_left_is_waited_for():
    leaving = socket.create_server(("127.0.0.1", 0))
    port = leaving.getsockname()[1]
    pid = os.fork()
    if pid == 0:
        time.sleep(0.5)
        os._exit(0)
    leaving.close()  # the fork holds it for a while
    with listen("127.0.0.1", port) as ours:
        assert ours.listening.getsockname()[1] == port
    os.waitpid(pid, 0)


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)
