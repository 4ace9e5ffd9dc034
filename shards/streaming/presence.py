"""Are all tars there, as long as they were written? Asked before a job; no content is read."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shards.index import DamagedShard
from shards.storage.errors import PlaceError
from shards.storage.places import Place

_AT_ONCE = 16


def check_shards(where: str, *, dataset: dict[str, Any]) -> None:
    """Look at the size of each tar.

    Args:
        where: Folder or URL.
        dataset: Its ``dataset.json``.

    Raises:
        DamagedShard: Some are missing or of another size.
    """
    place = Place(where)

    def wrong(shard: dict[str, Any]) -> str | None:
        try:
            size = place.info(shard["file"]).size
        except (PlaceError, OSError) as error:
            return f"{shard['file']} ({error})"
        expected = shard["size_bytes"]
        is_right = size in (expected, -1)  # -1 where a server does not tell
        return None if is_right else f"{shard['file']} ({size} bytes, not {expected})"

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = [line for line in pool.map(wrong, dataset["shards"]) if line is not None]
    if found:
        raise DamagedShard(
            f"{place}: {len(found)} of {len(dataset['shards'])} shards are missing or cut, such as "
            f"{found[0]}; run python -m shards.verify on it, then build again"
        )
