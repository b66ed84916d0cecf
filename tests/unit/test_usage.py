import threading

import pytest

from models.usage import Usage, UsageMeter
from models.vlir_config import Prices

# 3 requests, 1 of them failed; 2 x (1000, 200) tokens; 2 retries.
RETRIES = {"rate_limit": 1, "timeout": 0, "server": 1, "connection": 0}


def metered() -> UsageMeter:
    meter = UsageMeter()
    for _ in range(2):
        meter.count_reply(prompt_tokens=1000, completion_tokens=200)
    meter.count_retry("rate_limit")
    meter.count_retry("server")
    meter.count_failure()
    return meter


def test_everything_is_counted():
    total = metered().total
    assert total == Usage(3, 1, 2000, 400, RETRIES)
    assert total.num_retries == 2


def test_the_cost_is_per_million_tokens():
    # 2000 x 2.5 / 10^6 + 400 x 10 / 10^6 = 0.005 + 0.004
    assert metered().total.cost(Prices(prompt=2.5, completion=10)) == pytest.approx(0.009)
    assert metered().total.cost(Prices()) == 0


def test_metrics_have_one_name_each():
    assert metered().total.metrics("vlir/teacher", Prices(prompt=1)) == {
        "vlir/teacher/requests": 3,
        "vlir/teacher/failed_requests": 1,
        "vlir/teacher/prompt_tokens": 2000,
        "vlir/teacher/completion_tokens": 400,
        "vlir/teacher/cost_usd": 0.002,
        "vlir/teacher/retries_rate_limit": 1,
        "vlir/teacher/retries_timeout": 0,
        "vlir/teacher/retries_server": 1,
        "vlir/teacher/retries_connection": 0,
    }


def test_two_endpoints_add_up():
    assert metered().total + Usage(1, 0, 10, 5) == Usage(4, 1, 2010, 405, RETRIES)


def test_nothing_is_lost_between_threads():
    meter = UsageMeter()

    def count() -> None:
        for _ in range(2000):
            meter.count_reply(prompt_tokens=1, completion_tokens=2)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.total == Usage(8000, 0, 8000, 16000)
