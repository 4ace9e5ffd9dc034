"""A command with a known fault, or none: the harness must tell them apart.

    python -m tests.faults.planted FOLDER careful|careless

Writes a file in pieces and is done where the file is there. The careful way writes it beside, gives
it its name when it is whole, and tells of a full disk in one line.
"""

import os
import sys
from pathlib import Path

_PIECES, _PIECE_BYTES = 6, 20_000


def main() -> None:
    folder, is_careful = Path(sys.argv[1]), sys.argv[2] == "careful"
    final = folder / "data"
    if final.exists():
        return
    folder.mkdir(exist_ok=True)
    path = folder / ".data" if is_careful else final
    path.unlink(missing_ok=True)
    try:
        for number in range(_PIECES):
            with path.open("ab") as file:
                file.write(bytes([number]) * _PIECE_BYTES)
    except OSError as error:
        if not is_careful:
            raise
        print(f"error: {path}: {error}", file=sys.stderr)
        sys.exit(2)
    os.replace(path, final)


if __name__ == "__main__":
    main()
