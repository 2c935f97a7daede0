import socket

import pytest

from data_shards.errors import UserError
from launch.serving.server import address, bind


def test_answers_are_sent_without_waiting_for_an_acknowledgement() -> None:
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()[:2]):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_is_taken_once_and_told_as_a_url() -> None:
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert address(listening) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use; choose another --port"):
            bind("127.0.0.1", port)
