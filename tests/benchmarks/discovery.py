"""How soon consumers know: ``python tests/benchmarks/discovery.py``, against a RabbitMQ of its own on loopback.

Publish to "the consumer has switched" over some changes of the URL; a late joiner's time to know; a directory's processor
time and memory with many instances, each with a heartbeat.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from broker import Broker as OwnBroker

from avocado_magic.discovery import Directory
from avocado_magic.discovery.broker import parse_broker_url
from avocado_magic.discovery.message import TTL_SECONDS, URL_CHANGED, URL_HEARTBEAT, UrlMessage
from avocado_magic.discovery.publisher import Publication, publish
from avocado_magic.timestamps import utc_now


def message(number: int, instance: str = "one") -> UrlMessage:
    return UrlMessage(
        f"https://{number}.example", instance_id=instance, kind="notebook", models=("llama3:latest",), auth="bearer",
        seq=time.time_ns() // 1_000_000 + number, ttl=TTL_SECONDS, started_at=utc_now(),
    )  # fmt: skip


def outgoing(what: UrlMessage) -> list[Publication]:
    return [Publication(URL_CHANGED, what.to_json(), mandatory=True), Publication(URL_HEARTBEAT, what.to_json())]


def told(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"{name:<46} p50 {statistics.median(ordered) * 1000:6.1f} ms   p99 {p99 * 1000:6.1f} ms   ({len(ordered)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--instances", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        own = OwnBroker(Path(folder))
        own.start()
        try:
            measure(own.url, given.changes, given.instances)
        finally:
            own.stop()


def measure(url: str, changes: int, instances: int) -> None:
    broker = parse_broker_url(url)
    base = message(0)
    publish(broker, outgoing(base))
    switched = threading.Event()
    wanted = ""

    def on_change(instance: object) -> None:
        if getattr(instance, "url", None) == wanted:
            switched.set()

    taken = []
    with Directory(url) as directory:
        directory.wait(10)
        directory.subscribe(on_change)
        for number in range(1, changes + 1):
            fresh = replace(message(number), started_at=base.started_at)
            wanted = str(fresh.new_url)
            switched.clear()
            begun = time.perf_counter()
            publish(broker, outgoing(fresh))
            if not switched.wait(5):
                raise SystemExit(f"change {number} was not heard: {directory.dropped}")
            taken.append(time.perf_counter() - begun)
    told("publish to the consumer has switched", taken)
    late = []
    for _ in range(20):
        begun = time.perf_counter()
        with Directory(url) as directory:
            directory.wait(10)
            late.append(time.perf_counter() - begun)
    told("a late joiner knows, one instance", late)
    beats = [Publication(URL_HEARTBEAT, message(number, f"i{number}").to_json()) for number in range(instances)]
    for at in range(0, len(beats), 200):
        publish(broker, beats[at : at + 200])
    process = psutil.Process()
    begun = time.perf_counter()
    with Directory(url) as directory:
        while len(directory.instances()) < instances:
            time.sleep(0.01)
        print(f"{f'a late joiner knows {instances} instances':<46} {(time.perf_counter() - begun) * 1000:6.0f} ms")
        memory, used = process.memory_info().rss, sum(process.cpu_times()[:2])
        for at in range(0, len(beats), 200):
            publish(broker, beats[at : at + 200])
        time.sleep(2)
        spent = sum(process.cpu_times()[:2]) - used
    print(
        f"{instances} heartbeats: {spent * 1000:.0f} ms of processor time, publishing them too; {memory / 1e6:.0f} MB in all"
    )


if __name__ == "__main__":
    main()
