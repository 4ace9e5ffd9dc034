"""Inputs opened one after the other, the next ones in threads while the network is busy."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from foundation.embedding.inputs import Item
from shards.scan import Scan, ScanError

_READERS = 2


class Opened(NamedTuple):
    """An input with its first scan read; the others come one at a time."""

    first: Scan | None
    others: Iterator[Scan]
    failure: str
    is_oriented: bool


def read_ahead(items: Sequence[Item]) -> Iterator[tuple[Item, Opened]]:
    """Each input opened, while the next ones are; no more than these are in memory."""
    waiting: deque[Future[Opened]] = deque()
    ahead = iter(items)
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            for item in items:
                for later in islice(ahead, 1 + _READERS - len(waiting)):
                    waiting.append(pool.submit(open_item, later))
                yield item, waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def open_item(item: Item) -> Opened:
    nothing: Iterator[Scan] = iter(())
    if item.verdict is not None:
        return Opened(None, nothing, "", True)
    scans = item.read()
    try:
        return Opened(next(scans), scans, "", item.is_oriented())
    except ScanError as error:
        return Opened(None, nothing, str(error), True)
    except StopIteration:
        return Opened(None, nothing, "there is no volume in it", True)
