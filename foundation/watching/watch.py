"""What a recipe makes of a run's health: the checkups that are due, the alarms that are heeded."""

from pathlib import Path

from foundation.checkpoint import CheckpointWriter, read_state
from foundation.log import RunLog, read_log
from foundation.mae import Mae
from foundation.methods import Method
from foundation.recipe import PretrainConfig
from foundation.running.ranks import Ranks
from foundation.running.runs import LOG, RunState
from foundation.safety import SafetyConfig
from foundation.watching.alarms import Alarms
from foundation.watching.checkup import Checkup
from foundation.watching.guard import Guard
from foundation.watching.pinned import PinnedScan, read_pinned
from shards.streaming.corpus import Corpus


def start_checkup(
    config: PretrainConfig,
    *,
    method: Method,
    corpus: Corpus,
    scans: list[PinnedScan],
    micro_batch: int,
    ranks: Ranks,
) -> Checkup:
    """Read this rank's pinned scans, to be embedded while the run goes on."""
    pinned = read_pinned(
        corpus,
        scans=scans,
        plan=config.plan,
        micro_batch=micro_batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        max_damaged=config.reading.max_damaged,
    )
    return Checkup(
        pinned,
        backbone=method.backbone,
        preprocessing=config.preprocessing,
        # A MAE asks nothing of the class token, DINO most of all of that.
        pooled="mean" if isinstance(method, Mae) else "cls",
        every_steps=config.health.interval(
            num_scans=len(scans),
            global_batch=config.train.global_batch,
            log_every_steps=config.log.every_steps,
        ),
        device=ranks.device,
        precision=config.deepspeed.precision,
    )


def start_alarms(config: PretrainConfig, *, method: Method, log: RunLog | None) -> Alarms:
    """Alarms that have seen what the log holds of earlier sittings, on the rank that keeps it."""
    alarms = Alarms(
        first_judged=config.health.first_judged(
            warmup_steps=config.optimiser.warmup_steps,
            freeze_last_layer_steps=method.freeze_last_layer_steps,
        ),
        patience_steps=config.health.patience_steps,
    )
    for line in read_log(config.folder / LOG) if log else []:
        alarms.see(line)
    return alarms


def start_guard(
    config: SafetyConfig,
    *,
    folder: Path,
    state: RunState,
    rolls_back_on_collapse: bool,
    log: RunLog | None,
    writer: CheckpointWriter | None,
) -> Guard:
    """Goes on with the incidents of the run up to where it stands."""
    kept = read_state(state.checkpoint) if state.checkpoint else {}
    return Guard(
        config,
        folder=folder,
        step=state.step,
        recent_losses=kept.get("recent_losses", []),
        rolls_back_on_collapse=rolls_back_on_collapse,
        writer=writer,
        log=log,
    )
