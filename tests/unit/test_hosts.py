from __future__ import annotations

import pytest

from attempt_ray.hosts import is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is_known(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "localhost.example.org", "127.0.0.1.nip.io"]
)
def test_no_other_host_is_taken_for_it(host):
    assert not is_loopback(host)
