"""One disturbed history of a job, to its end: is what comes out what an undisturbed one gives?

A disturbed attempt may end by its fault, or by one line that says what is wrong and where, never
by a traceback. The next one, in peace, must end with the undisturbed result.
"""

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.faults import strikes
from tests.faults.cases import Case, Failure, Reference, Verdict
from tests.faults.damage import damage, is_detected, rewrite, synced_bytes
from tests.faults.jobs import Job, differences, result_of
from tests.faults.processes import Ended, Strike, run_job

SEED = 20261124
_USER_ERROR, _COME_BACK, _INTERRUPTED = 2, 75, 130
_PAUSE_S = 0.3


def undisturbed(job: Job, *, place: Path, streams: Path) -> Reference:
    """Run a job in peace.

    Raises:
        Failure: It does not finish.
    """
    ended = run_job(job, place=place, streams=streams, strike=None)
    if any(ended.codes):
        raise Failure(f"{job.name} does not even finish undisturbed: {ended.told}")
    board = ended.board
    return Reference(result_of(job), board.stages, board.times_s, _files(place))


def _files(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


class History:
    """A job, the fault that meets it, and the attempts until it is done."""

    def __init__(
        self,
        number: int,
        *,
        case: Case,
        job: Job,
        reference: Reference,
        place: Path,
        streams: Path,
    ) -> None:
        self._number, self._case = number, case
        self._job, self._reference = job, reference
        self._place, self._streams = place, streams
        self._random = np.random.default_rng([SEED, number])
        self._stage, self._attempts = "", 0
        self._said: list[str] = []
        self._mend: Callable[[], None] | None = None

    def run(self) -> Verdict:
        """To the end."""
        try:
            getattr(self, f"_{self._case.fault}")()
            self._finish()
            self._compare()
            failure = ""
        except Failure as error:
            failure = str(error)
        finally:
            if self._mend is not None:
                self._mend()
        case = self._case
        return Verdict(self._number, *case, self._stage, self._attempts, self._said, failure)

    # The faults: each makes a first attempt and leaves the job to be finished.

    def _kill(self) -> None:
        self._attempt(self._moment(strikes.kill))
        if self._random.random() < 0.5:
            self._attempt(self._moment(strikes.kill))

    def _tear(self) -> None:
        most_bytes = int(10 ** self._random.uniform(0, 6))
        self._say(f"no file past {most_bytes} bytes")
        self._attempt(self._moment(strikes.kill_in_a_write(most_bytes), inside=True))

    def _signal(self) -> None:
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        number = numbers[int(self._random.integers(3))]
        only = self._one_rank() if self._random.random() < 0.5 else None
        self._say(f"{number.name} to {'all' if only is None else f'rank {only}'}")
        ended = self._attempt(self._moment(strikes.tell(number, only=only)))
        lost = {_USER_ERROR} if self._job.ranks > 1 else set()
        self._expect(ended, {0, _COME_BACK, _INTERRUPTED, -number} | lost)

    def _fill(self) -> None:
        spare_bytes = int(self._random.choice([0, 0, 4096, 65536]))
        self._mend = lambda: strikes.free(self._place)
        ended = self._attempt(self._moment(strikes.fill(self._place, spare_bytes=spare_bytes)))
        self._expect(ended, {0, _USER_ERROR})
        if self._random.random() < 0.5:  # whoever starts it again has not looked
            self._expect(self._attempt(None), {0, _USER_ERROR})
        self._mended()

    def _cut(self) -> None:
        rank = self._one_rank()
        self._say(f"rank {rank} is killed")
        ended = self._attempt(self._moment(strikes.tell(signal.SIGKILL, only=rank)))
        self._expect(ended, {0, _USER_ERROR, -signal.SIGKILL})

    def _freeze(self) -> None:
        rank, for_ever = self._one_rank(), self._random.random() < 0.5
        self._say(f"rank {rank} is stopped{' for ever' if for_ever else ''}")
        strike = self._moment(strikes.tell(signal.SIGSTOP, only=rank))
        ended = self._attempt(strike._replace(resume_s=None if for_ever else _PAUSE_S))
        self._expect(ended, {0, _USER_ERROR, -signal.SIGKILL} if for_ever else {0})

    def _vanish(self) -> None:
        found = sorted(self._job.inputs.glob(self._job.pattern))
        path = found[int(self._random.integers(len(found)))]
        self._say(f"{path.name} is taken away")
        self._mend = lambda: strikes.put_back(path)
        ended = self._attempt(self._moment(strikes.take_away(path)))
        self._expect(ended, {0, _USER_ERROR})
        self._mended()

    def _corrupt(self) -> None:
        self._attempt(self._moment(strikes.kill, past=0.3))  # when there is something to damage
        found = self._unfinished()
        if not found:
            return
        path, keep_bytes = found[int(self._random.integers(len(found)))]
        before = path.read_bytes()
        self._say(damage(path, self._random, keep_bytes=keep_bytes))
        self._mend = lambda: rewrite(path, before)
        ended = self._attempt(None)
        self._expect(ended, {0, _USER_ERROR})
        if not any(ended.codes):
            self._mend = None
        elif not self._job.trains:  # nobody else has the bytes of a draft
            raise Failure(f"a dead end: {self._said[-1]}")
        else:
            self._mended()

    def _published(self) -> None:
        """What is finished is not looked at by the job: whoever reads it must find the damage."""
        self._finish()
        self._stage = "backbone" if self._job.trains else "shards"
        folder = self._job.out / "backbone" if self._job.trains else self._job.out
        found = [path for path in sorted(folder.iterdir()) if path.name != ".inputs"]
        path = found[int(self._random.integers(len(found)))]
        before = path.read_bytes()
        self._say(damage(path, self._random))
        if path.read_bytes() != before and not is_detected(folder):
            raise Failure(f"the damage is not detected: {self._said[-1]}")
        path.write_bytes(before)
        if is_detected(folder):
            raise Failure("damage is found where there is none any more")

    # What the faults are made of.

    def _moment(self, act: strikes.Act, *, inside: bool = False, past: float = 0.0) -> Strike:
        """At a change of a stage drawn first, as stages differ in length; or at any time.

        Args:
            act: The fault.
            inside: It must come from the process itself, so just before a change.
            past: Part of the job's changes that come before it at least.
        """
        stages, times_s = self._reference.stages, self._reference.times_s
        if not inside and self._random.random() < 0.3:
            begin_s = times_s[int(past * len(stages))]
            if self._job.trains:  # once the network is built
                begin_s = times_s[stages.index("checkpoint") - 1]
            time_s = self._random.uniform(begin_s, times_s[-1])
            change = int(np.searchsorted(times_s, time_s, side="right"))
            return Strike(act, change=change, delay_s=time_s - times_s[change - 1])
        first = 1 + int(past * len(stages))
        kinds = sorted(set(stages[first - 1 :]))
        stage = kinds[int(self._random.integers(len(kinds)))]
        changes = [n for n, each in enumerate(stages, start=1) if each == stage and n >= first]
        return Strike(act, change=changes[int(self._random.integers(len(changes)))])

    def _one_rank(self) -> int:
        return int(self._random.integers(self._job.ranks))

    def _attempt(self, strike: Strike | None) -> Ended:
        self._attempts += 1
        ended = run_job(self._job, place=self._place, streams=self._streams, strike=strike)
        board, when = ended.board, ""
        if board.struck_at:
            stage = board.stages[board.struck_at - 1] if board.changes else "training"
            self._stage = self._stage or stage
            when = f"at change {board.struck_at} ({stage}) "
        self._say(f"{when}-> {ended.codes}")
        if ended.hung:
            raise Failure("it hangs")
        if ended.left:
            raise Failure(f"processes stay behind: {', '.join(ended.left)}")
        return ended

    def _expect(self, ended: Ended, allowed: set[int]) -> None:
        told = "".join(ended.told)
        lines = [line for line in told.splitlines() if "error: " in line]
        if "Traceback" in told:
            raise Failure(f"a traceback: {told.strip().splitlines()[-1]}")
        if odd := set(ended.codes) - allowed:
            raise Failure(f"leaves with {sorted(odd)}: {told[-300:]}")
        if _USER_ERROR in ended.codes and len(lines) != 1:
            raise Failure(f"an error in {len(lines)} lines: {told[-300:]}")
        if any(not _names_a_place(line) for line in lines):
            raise Failure(f"an error that does not say where: {lines[0]}")
        self._said += [line.replace(str(self._place), "") for line in lines]

    def _finish(self) -> None:
        """The same command again, in peace."""
        self._expect(self._attempt(None), {0})

    def _compare(self) -> None:
        try:
            found = result_of(self._job)
        except (OSError, ValueError) as error:
            raise Failure(f"the result cannot be read: {error}") from None
        if odd := differences(found, self._reference.result):
            raise Failure(f"not the undisturbed result: {', '.join(odd)}")
        if left := set(_files(self._place)) - set(self._reference.files):
            self._say(f"left behind: {', '.join(sorted(left))}")

    def _unfinished(self) -> list[tuple[Path, int]]:
        """Files that a damage may meet, and how much of each is left alone."""
        out = self._job.out
        if (out / "backbone").exists() or (not self._job.trains and out.exists()):
            return []
        found = [path for path in sorted(self._place.rglob("*")) if path.is_file()]
        pairs = [(path, synced_bytes(path)) for path in found]
        return [(path, keep) for path, keep in pairs if path.stat().st_size > keep]

    def _mended(self) -> None:
        assert self._mend is not None
        self._mend()
        self._mend = None

    def _say(self, text: str) -> None:
        self._said.append(text)


def _names_a_place(line: str) -> bool:
    """A line for whoever has to mend it."""
    return "/" in line or "rank" in line
